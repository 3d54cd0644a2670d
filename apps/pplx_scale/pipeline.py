"""The pipeline on Ray Data: read, encode in a pool of actors, write; with Ray's checkpoints, so that it can restart.

    CorpusSource ─> rows ─> actors, one session each ─> encoded rows ─> CorpusSink
    (a task a file)         (restarted when they die)                  (a task a file; pending, written, committed)

Ray Data runs a task again when its worker or its node dies. A run that ends in between leaves checkpoints of the rows
that were written; the next run filters them out right after reading, and deletes files that were not committed.
"""

import gc
import logging
import re
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
from ray.data.block import BlockAccessor, BlockMetadata
from ray.data.checkpoint import CheckpointConfig
from ray.data.datasource import Datasource, FilenameProvider, ReadTask
from ray.data.datasource.file_datasink import BlockBasedFileDatasink
from ray.exceptions import RayError

from pplx_edge.errors import ArtifactError, EdgeError
from pplx_scale import output
from pplx_scale.encoding import EncodeOptions, Encoder, encode_table
from pplx_scale.reading import InputFile, ReadOptions, read_file
from pplx_scale.report import part_prefix
from pplx_scale.storage import Place
from pplx_scale.workers import Workers

OpenEncoder = Callable[[], Encoder]
_READER_CPUS = 0.25  # other than that of an actor, so that Ray does not merge the two
_COUNTER_SECONDS = 1.0
_WRAPPERS = ("UserCodeException", "RayTaskError", "ActorDiedError")
_ERROR_LINE = re.compile(r"^\s*(?:\w+\.)*(\w*(?:Error|Exception|NotFound|TooLong): .*)$", re.MULTILINE)


@contextmanager
def ray_session(address: str | None, n_cpus: int, object_store_bytes: int) -> Iterator[None]:
    """Connect to a cluster, or start Ray on this machine alone, and end it with the block.

    Ray that is already running in this process is used, and kept. On this machine, Ray listens on the loopback address
    only if RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER was 0 when it was imported, as `corpus` makes sure.
    """
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    here = {"num_cpus": n_cpus, "object_store_memory": object_store_bytes, "_node_ip_address": "127.0.0.1"}
    try:
        ray.init(address or "local", **quiet, **({"include_dashboard": False, **here} if address is None else {}))
    except Exception as error:  # Ray raises bare exceptions here
        where = "on this machine" if address is None else f"at {address}"
        raise EdgeError(f"Ray did not start {where}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def describe_encoder(open_encoder: OpenEncoder, options: EncodeOptions, workers: Workers) -> dict[str, Any]:
    """Return the fingerprint of an encoder and the width of its vectors, from a worker, where the model is."""
    task = ray.remote(num_cpus=workers.cpus, num_gpus=workers.gpus)(_describe)
    return ray.get(task.remote(open_encoder, options))


def run_pipeline(
    source: Place,
    inputs: list[InputFile],
    out: Place,
    *,
    run: int,
    open_encoder: OpenEncoder,
    provenance: dict[str, Any],
    read: ReadOptions,
    encode: EncodeOptions,
    workers: Workers,
    on_progress: Callable[[int, int], None] = lambda rows, tokens: None,
) -> None:
    """Embed the rows that no checkpoint has. `on_progress` is called with the rows and tokens encoded so far."""
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = workers.block_bytes
    checkpoints = CheckpointConfig(
        "key",
        (out / output.CHECKPOINT).path,
        override_filesystem=out.filesystem,
        delete_checkpoint_on_success=False,  # so that the next run only embeds what is new
    )
    checkpoints.checkpoint_actor_memory_bytes = 1 << 26
    checkpoints.checkpoint_actor_pool_max_size = workers.most
    context.checkpoint_config = checkpoints
    with ray.data.DataContext.current(context), _counting(on_progress) as counter, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that few rows are left for so many actors
        rows = ray.data.read_datasource(CorpusSource(source, inputs, read), num_cpus=_READER_CPUS)
        encoded = rows.map_batches(
            EncodingActor,
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(min_size=workers.least, max_size=workers.most),
            num_cpus=workers.cpus,
            num_gpus=workers.gpus or None,
            fn_constructor_args=(open_encoder, provenance, encode, counter),
        )
        sink = CorpusSink(out / output.DATA, provenance, run, workers.rows_per_file)
        encoded.write_datasink(sink, ray_remote_args={"num_cpus": _READER_CPUS})


class CorpusSource(Datasource):
    """The files of a corpus as a source of Ray Data: one task a file, whose blocks the actors share."""

    def __init__(self, source: Place, inputs: list[InputFile], options: ReadOptions):
        super().__init__()
        self._source, self._inputs, self._options = source, inputs, options

    def get_name(self) -> str:
        """See `Datasource`."""
        return "Corpus"

    def estimate_inmemory_data_size(self) -> int | None:
        """See `Datasource`."""
        return sum(file.size for file in self._inputs)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """See `Datasource`."""
        return [self._task(file, per_task_row_limit) for file in self._inputs]

    def _task(self, file: InputFile, limit: int | None) -> ReadTask:
        source, options = self._source, self._options
        about = BlockMetadata(num_rows=None, size_bytes=file.size, input_files=None, exec_stats=None)
        return ReadTask(lambda: read_file(source, file, options), about, per_task_row_limit=limit)


class EncodingActor:
    """An actor with one session, which encodes a table at a time."""

    def __init__(self, open_encoder: OpenEncoder, provenance: dict[str, Any], options: EncodeOptions, counter: Any):
        self._encoder, self._options, self._counter = open_encoder(), options, counter
        if self._encoder.fingerprint != provenance["fingerprint"]:
            raise ArtifactError(
                f"this node has another model: its fingerprint is {self._encoder.fingerprint}, expected "
                f"{provenance['fingerprint']}; give all nodes the same model files"
            )

    def __call__(self, table: pa.Table) -> pa.Table:
        encoded = encode_table(self._encoder, table, self._options)
        n_tokens = sum(sum(lengths or ()) for lengths in encoded["lengths"].to_pylist())
        self._counter.add.remote(len(encoded), n_tokens)
        return encoded


class CorpusSink(BlockBasedFileDatasink):
    """Writes a pair of files per task: what became of the rows, then the vectors."""

    def __init__(self, data: Place, provenance: dict[str, Any], run: int, rows_per_file: int):
        for kind in (output.DOCUMENTS, output.VECTORS):
            (data / kind).filesystem.create_dir((data / kind).path, recursive=True)
        super().__init__(
            data.path,
            filesystem=data.filesystem,
            file_format="parquet",
            filename_provider=PartNames(run),
            min_rows_per_file=rows_per_file,
        )
        self._provenance = provenance

    def write_block(self, block: BlockAccessor, block_index: int, ctx: Any) -> None:
        """See `BlockBasedFileDatasink`. A task that is repeated writes the same rows to the same files."""
        name = self.filename_provider.get_filename_for_task("", ctx.task_idx)
        encoded = block.to_arrow()
        for kind, make in ((output.DOCUMENTS, output.documents_table), (output.VECTORS, output.vectors_table)):
            with self.open_output_stream(f"{self.path}/{kind}/{name}") as file:
                pq.write_table(make(encoded, self._provenance), file, compression=output.COMPRESSION)

    def write_block_to_file(self, block: BlockAccessor, file: Any) -> None:
        """See `BlockBasedFileDatasink`; not used, because a task writes two files."""
        raise NotImplementedError


class PartNames(FilenameProvider):
    """Names of files that follow from the number of the run and of the task alone."""

    def __init__(self, run: int):
        super().__init__(file_format="parquet")
        self._run = run

    def get_filename_for_task(self, write_uuid: str, task_index: int) -> str:
        """See `FilenameProvider`. Ten digits, because no name may be the beginning of another."""
        return f"{part_prefix(self._run)}{task_index:010}.parquet"


class Counter:
    """Rows and tokens that the actors have encoded, for the progress line; repeated work counts again."""

    def __init__(self) -> None:
        self.rows = self.tokens = 0

    def add(self, rows: int, tokens: int) -> None:
        self.rows += rows
        self.tokens += tokens

    def read(self) -> tuple[int, int]:
        return self.rows, self.tokens


@contextmanager
def _counting(on_progress: Callable[[int, int], None]) -> Iterator[Any]:
    """Provide a counter for the actors, and report it about once a second until the block ends."""
    as_actor: Any = ray.remote(num_cpus=0, max_restarts=-1)
    counter = as_actor(Counter).remote()
    ended = threading.Event()

    def report() -> None:
        while not ended.wait(_COUNTER_SECONDS):
            with suppress(RayError):
                on_progress(*ray.get(counter.read.remote(), timeout=_COUNTER_SECONDS))

    thread = threading.Thread(target=report, name="pplx-scale-progress", daemon=True)
    thread.start()
    try:
        yield counter
    finally:
        ended.set()
        thread.join()


def first_error(error: BaseException) -> BaseException:
    """Return the error of ours at the bottom of those of Ray, one with its words, or else the error itself.

    Clears the local variables of the frames that it came through: they hold the actors of the run, and with them their
    cores, for which another run in this process would wait.
    """
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        traceback.clear_frames(cause.__traceback__)
        cause = getattr(cause, "cause", None) or cause.__cause__ or cause.__context__
    gc.collect()
    if ours := [one for one in chain if isinstance(one, EdgeError)]:
        return ours[0]
    if not isinstance(error, RayError):
        return error
    said = _ERROR_LINE.findall(str(error)) or [type(error).__name__]
    said = [line for line in said if not line.startswith(_WRAPPERS)] or said
    return EdgeError(f"a worker failed: {said[-1]}; start the run again to continue")


def _describe(open_encoder: OpenEncoder, options: EncodeOptions) -> dict[str, Any]:
    encoder = open_encoder()
    empty = encoder.encode([], options.precision, dim=options.dim)
    return {"fingerprint": encoder.fingerprint, "width": int(empty.shape[1])}
