"""A server in a process of its own, a client of it whose answers are compared, and plain sockets for the others."""

import json
import os
import socket
import subprocess
import sys
import threading
import time

import grpc
from running import until

from fastrnn.serving.server.messages import message

INFER = "/v2/models/m/infer"
MOST_GROWTH = 400 << 20  # of the server's memory: some requests of 64 MiB, copied


class Victim(threading.Thread):
    """A client of gRPC with one sequence, whose answers are compared."""

    def __init__(self, port, frames, alone):
        super().__init__(daemon=True)
        self.frames, self.alone, self.steps, self.ended, self.error = frames, alone, 0, False, None
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self.call = self.channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=lambda m: m.SerializeToString(),
            response_deserializer=message("ModelInferResponse").FromString,
        )

    def run(self):
        try:
            while not self.ended:
                t = self.steps % len(self.frames)
                request = message("ModelInferRequest")(model_name="m")
                request.inputs.add(name="x", datatype="FP32", shape=(1, 5))
                request.raw_input_contents.append(self.frames[t].tobytes())
                request.parameters["sequence_id"].string_param = "victim"
                request.parameters["sequence_start"].bool_param = t == 0
                request.parameters["step_index"].int64_param = t
                answer = self.call(request, timeout=60)
                assert answer.raw_output_contents[0] == self.alone[t].tobytes(), f"other bits at step {self.steps}"
                self.steps += 1
                time.sleep(0.002)
        except BaseException as error:
            self.error = error

    def goes_on(self):
        """It takes more steps, right ones."""
        before = self.steps
        until(lambda: self.error is not None or self.steps > before + 3)
        assert self.error is None, self.error


class Served:
    """`fastrnn serve` in a process of its own."""

    def __init__(self, folder):
        path = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fastrnn", "serve", "m.fastrnn", "--http-port=0", "--grpc-port=0", "--json"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log = []
        self.reader = threading.Thread(target=lambda: self.log.extend(self.process.stderr), daemon=True)
        self.reader.start()
        told = json.loads(self.process.stdout.readline())
        self.http, self.grpc = (int(told[name].rpartition(":")[2]) for name in ("http", "grpc"))

    def resident(self):
        """Bytes of memory."""
        with open(f"/proc/{self.process.pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def files(self):
        """Open file descriptors."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def close(self):
        self.process.terminate()
        self.process.wait(60)
        self.reader.join(30)
        self.process.stdout.close(), self.process.stderr.close()


def send(port, *parts, most=1 << 16, half=False):
    """What a port answers to bytes, until it closes the connection or has sent `most`."""
    got = b""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        try:
            for part in parts:
                connection.sendall(part)
            if half:
                connection.shutdown(socket.SHUT_WR)
            while len(got) < most and (data := connection.recv(1 << 16)):
                got += data
        except OSError:  # the server has closed it in the middle
            pass
    return got


def status(answer):
    assert answer.startswith(b"HTTP/1.1 "), answer[:100]
    return int(answer[9:12])


def head(path=INFER, method="POST", **headers):
    given = {"Host": "localhost", "Connection": "close", **{k.replace("_", "-"): v for k, v in headers.items()}}
    return "".join([f"{method} {path} HTTP/1.1\r\n", *(f"{k}: {v}\r\n" for k, v in given.items()), "\r\n"]).encode()
