"""Test and training collections: documents, queries and qrels.

`files` reads and writes bytes, `readers` texts, `trec` runs and qrels. `collection`, `irds` and
`apidocs` make collections of them; `suites` names sets of test collections.
"""

from xsweep.evaluator.data import apidocs, irds
from xsweep.evaluator.data.collection import (
    Collection,
    from_files,
    from_folder,
    from_jsonl,
    from_parquet,
)
from xsweep.evaluator.specs import (
    ApidocsSpec,
    CollectionSpec,
    FilesSpec,
    FolderSpec,
    IrdsSpec,
    JsonlSpec,
    ParquetSpec,
)


def load_collection(spec: CollectionSpec) -> Collection:
    """The collection that a spec names.

    Raises DataError if its files are missing, damaged or not what was declared.
    """
    match spec:
        case ApidocsSpec():
            return apidocs.load(spec)
        case IrdsSpec():
            return irds.load(spec)
        case FilesSpec():
            return from_files(spec)
        case FolderSpec():
            return from_folder(spec)
        case JsonlSpec():
            return from_jsonl(spec)
        case ParquetSpec():
            return from_parquet(spec)
