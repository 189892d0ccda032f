"""Settings of gunicorn (25 or later, whose `asgi` worker needs no other package) for app.py."""

import os

import fastrnn

bind = os.environ.get("BIND", "127.0.0.1:8000")
worker_class = "asgi"

# One worker per CPU that this process may use: the least of the CPU affinity, the quota of the container or unit, and
# OMP_NUM_THREADS. Each worker steps on one thread.
workers = int(os.environ.get("WORKERS", fastrnn.cpu_info().threads.count))

# Load app.py, and with it the model, before the workers are forked: they share its memory, and start at once.
preload_app = True

graceful_timeout = 10  # seconds that open connections get after SIGTERM
control_socket_disable = True  # it would be in the home folder, and the unit's user has none
