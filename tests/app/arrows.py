"""Tables as Arrow writes them.

content = stream(arrow(target_0=[1.0, None]), arrow(target_0=[2.0, 3.0]))
"""

import io
from typing import Any

import pyarrow as pa

STREAM, FILE = "application/vnd.apache.arrow.stream", "application/vnd.apache.arrow.file"


def arrow(**columns: Any) -> pa.RecordBatch:  # noqa: ANN401  whatever pyarrow takes
    """A batch of these columns."""
    return pa.record_batch(columns)


def stream(*batches: pa.RecordBatch, as_file: bool = False, **options: object) -> bytes:
    """An IPC stream of batches with one schema, or a file of them."""
    content = io.BytesIO()
    kind = pa.ipc.new_file if as_file else pa.ipc.new_stream
    with kind(content, batches[0].schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return content.getvalue()


def table_in(content: bytes) -> pa.Table:
    """What is in a stream."""
    return pa.ipc.open_stream(content).read_all()
