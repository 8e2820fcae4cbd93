"""Small clients of a Triton server: what existing users of both contracts send, and the metrics page."""

import http.client
import json
import queue
import threading
import time

import numpy as np
import tritonclient.grpc as grpc
from tritonclient.utils import np_to_triton_dtype

KINDS = {str: object, bytes: object, bool: bool, int: np.int32, float: np.float32}


def tensor(name, value):
    """value: nested lists of str, bytes, bool, int or float, or an array."""
    if not isinstance(value, np.ndarray):
        value = np.array(value, dtype=KINDS[type(np.array(value, dtype=object).flat[0])])
    made = grpc.InferInput(name, list(value.shape), np_to_triton_dtype(value.dtype))
    made.set_data_from_numpy(value)
    return made


class Stream:
    """A gRPC stream with one request on it. Iterating gives {output: array} until the final response."""

    def __init__(self, server, model, inputs, request_id=""):
        self.responses = queue.Queue()
        self.client = grpc.InferenceServerClient(server.grpc)
        self.client.start_stream(lambda result, error: self.responses.put((result, error)))
        tensors = [tensor(name, value) for name, value in inputs.items()]
        self.client.async_stream_infer(model, tensors, request_id=request_id, enable_empty_final_response=True)

    def __iter__(self):
        final = False
        while not final:
            result, error = self.responses.get(timeout=30)
            if error:
                raise error
            response = result.get_response()
            final = response.parameters["triton_final_response"].bool_param
            if response.outputs:
                yield {output.name: result.as_numpy(output.name) for output in response.outputs}

    def close(self, cancel=False):
        self.client.stop_stream(cancel_requests=cancel)
        self.client.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def vllm_inputs(prompt="def ", stream=True, **sampling):
    return {"text_input": [prompt], "stream": [stream], "sampling_parameters": [json.dumps(sampling)]}


def complete(server, model, inputs):
    """The text of a gRPC stream."""
    with Stream(server, model, inputs) as stream:
        return "".join(response["text_output"].flat[0].decode() for response in stream)


def open_generate(server, model, body, stream=False):
    connection = http.client.HTTPConnection(server.http, timeout=30)
    connection.request("POST", f"/v2/models/{model}/generate{'_stream' if stream else ''}", json.dumps(body))
    return connection, connection.getresponse()


def generate(server, model, body, stream=False):
    """(HTTP status, JSON) of /generate; with stream a list of the events of /generate_stream."""
    connection, response = open_generate(server, model, body, stream)
    text = response.read().decode()
    connection.close()
    if not stream:
        return response.status, json.loads(text)
    return response.status, [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]


def metric(server, name, model="demo"):
    connection = http.client.HTTPConnection(server.metrics, timeout=10)
    connection.request("GET", "/metrics")
    page = connection.getresponse().read().decode()
    connection.close()
    values = [line for line in page.splitlines() if line.startswith(f"{name}{{") and f'model="{model}"' in line]
    return float(values[0].split()[-1]) if values else None


def wait_for(condition, what, limit_s=10):
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < limit_s, f"not within {limit_s} s: {what}"
        time.sleep(0.02)


def together(functions):
    """Runs all at once; the first error is raised here."""
    results = [None] * len(functions)

    def run(number, function):
        try:
            results[number] = function()
        except Exception as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=item) for item in enumerate(functions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results
