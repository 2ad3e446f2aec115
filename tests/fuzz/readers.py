"""The table of readers: each reads a file that somebody else may have written.

To add a reader, add a row to the module of its kind: what the file is called, how a folder with a whole example is
made, which file of it is changed and how, and the call that reads it. The reader may raise a `UserError`, or what the
row allows. Not in the table: slurm/site.env, which a shell runs, and TensorBoard's event files, of which training reads
the names alone.
"""

from tests.fuzz import of_corpora, of_evaluation, of_runs, of_shards, of_weights
from tests.fuzz.reader import Reader

_TABLES = [module.READERS for module in (of_shards, of_corpora, of_runs, of_weights, of_evaluation)]
READERS: dict[str, Reader] = {name: reader for table in _TABLES for name, reader in table.items()}
assert len(READERS) == sum(map(len, _TABLES))
