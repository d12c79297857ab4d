"""A model that was loaded last is not loaded again, unless its files have changed."""

import os
import shutil

import torch

from xsweep.evaluator.models.cross_encoder import load_cross_encoder, load_warm
from xsweep.evaluator.specs import ModelSpec


def test_the_model_of_the_last_evaluation_is_kept_and_equals_a_fresh_one(make_model_folder):
    spec = ModelSpec(folder=str(make_model_folder("bert")))
    model, _ = load_warm(spec)
    assert load_warm(spec)[0] is model
    fresh = dict(load_cross_encoder(spec)[0].named_parameters())
    assert all(torch.equal(fresh[name], weights) for name, weights in model.named_parameters())


def test_another_model_or_changed_files_are_loaded_anew(make_model_folder, tmp_path):
    bert, electra = make_model_folder("bert"), make_model_folder("electra")
    mine = tmp_path / "mine"
    shutil.copytree(bert, mine)
    first = load_warm(ModelSpec(folder=str(mine)))[0]
    assert load_warm(ModelSpec(folder=str(electra)))[0] is not first
    again = load_warm(ModelSpec(folder=str(mine)))[0]
    assert again is not first, "one is kept, not two"
    os.utime(mine / "model.safetensors", (1, 1))
    assert load_warm(ModelSpec(folder=str(mine)))[0] is not again
