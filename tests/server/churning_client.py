"""A client that steps sequences until it is told to end: in chunks of many sizes, with requests that it cancels and
sends again, and sequences that it starts anew. It compares each answer with a lone stream's, prints a line for each
round, and ends with code 3 at a wrong bit.

Usage: churning_client.py KIND PORT FOLDER FIRST_ID SEED. KIND is stream, grpc or http. It ends at a file FOLDER/end.
"""

import http.client
import json
import queue
import random
import sys
from pathlib import Path

import numpy as np

SEQUENCES = 6


class Unary:
    """A tritonclient of HTTP or gRPC, and a way to cancel a request."""

    def __init__(self, kind, port):
        if kind == "grpc":
            import tritonclient.grpc as module
        else:
            import tritonclient.http as module
        self.kind, self.port, self.module = kind, port, module
        self.client = module.InferenceServerClient(f"127.0.0.1:{port}")

    def ask(self, x, flags, index):
        tensor = self.module.InferInput("x", list(x.shape), "FP32")
        tensor.set_data_from_numpy(x)
        return self.client.infer("m", [tensor], parameters={"step_index": index}, **flags).as_numpy("y")

    def cancel(self, x, flags, index):
        """Send it, and go without the answer."""
        if self.kind == "grpc":
            tensor = self.module.InferInput("x", list(x.shape), "FP32")
            tensor.set_data_from_numpy(x)
            parameters = {"step_index": index}
            self.client.async_infer("m", [tensor], lambda result, error: None, parameters=parameters, **flags).cancel()
            return
        tensor = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.reshape(-1).tolist()}
        body = json.dumps({"inputs": [tensor], "parameters": {"step_index": index, **flags}})
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        connection.request("POST", "/v2/models/m/infer", body)
        connection.close()


class Streaming(Unary):
    """The stream of gRPC; a request that is cancelled is one whose stream is."""

    def __init__(self, port):
        super().__init__("grpc", port)
        self.open()

    def open(self):
        answers = self.answers = queue.Queue()
        self.client.start_stream(lambda result, error: answers.put((result, error)))

    def send(self, x, flags, index):
        tensor = self.module.InferInput("x", list(x.shape), "FP32")
        tensor.set_data_from_numpy(x)
        self.client.async_stream_infer("m", [tensor], parameters={"step_index": index}, **flags)

    def ask(self, x, flags, index):
        self.send(x, flags, index)
        result, error = self.answers.get(timeout=60)
        if error is not None:
            raise error
        return result.as_numpy("y")

    def cancel(self, x, flags, index):
        self.send(x, flags, index)
        self.client.stop_stream(cancel_requests=True)
        self.open()


def main():
    kind, port, folder, first, seed = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
    frames, alone = np.load(folder / "frames.npy"), np.load(folder / "alone.npy")
    rng = random.Random(seed)
    client = Streaming(port) if kind == "stream" else Unary(kind, port)
    at = dict.fromkeys(range(first, first + SEQUENCES), 0)
    rounds = 0
    while at:
        ending = (folder / "end").exists()
        for id in list(at):
            if rng.random() < 0.05 or at[id] > len(frames) - 50:
                at[id] = 0
            t, size = at[id], rng.choice([1, 1, 1, 2, 50])
            flags = {"sequence_id": id, "sequence_start": t == 0, "sequence_end": ending}
            x = frames[None, t : t + size]
            if rng.random() < 0.1 and not ending and (t or kind != "http"):
                client.cancel(x, flags, t)  # a START on another connection may come late, and start the sequence anew
            y = client.ask(x, flags, t)[0]
            if not np.array_equal(y, alone[t : t + size]):
                print(f"WRONG: {kind} sequence {id} at {t}, {size} steps", flush=True)
                sys.exit(3)
            at[id] = t + size
            if ending:
                del at[id]
        rounds += 1
        print(rounds, flush=True)


main()
