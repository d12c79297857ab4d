from pathlib import Path

from xsweep.errors import DataError
from xsweep.evaluator.data import files
from xsweep.evaluator.data.collection import Collection, from_files
from xsweep.evaluator.data.readers import folder_files, folder_sha256
from xsweep.evaluator.specs import (
    ApidocsSpec,
    CollectionSpec,
    FilesSpec,
    FolderSpec,
    IrdsSpec,
    JsonlSpec,
)


def load_collection(spec: CollectionSpec) -> Collection:
    """The collection that a spec names.

    Raises DataError where its files are missing, damaged or not what was declared.
    """
    match spec:
        case ApidocsSpec():
            from xsweep.evaluator.data import apidocs

            return apidocs.load(spec)
        case IrdsSpec():
            from xsweep.evaluator.data import irds

            return irds.load(spec)
        case FilesSpec():
            paths = [files.checked(file) for file in (spec.documents, spec.queries, spec.qrels)]
            return from_files(spec.name, *paths)
        case FolderSpec():
            return _from_folder(spec)
        case JsonlSpec():
            from xsweep.evaluator.data import collection

            return collection.load_jsonl(spec)


def _from_folder(spec: FolderSpec) -> Collection:
    folder = Path(spec.path)
    paths = folder_files(folder, spec.split)
    if spec.sha256 and (found := folder_sha256(folder, spec.split)) != spec.sha256:
        raise DataError(
            f"{folder}: the files of split {spec.split!r} have sha256 {found}, declared is "
            f"{spec.sha256}: they were changed or are others"
        )
    return from_files(spec.name, *paths)
