#!/usr/bin/env python3
"""Reference data from Hugging Face Transformers' MambaForCausalLM, for test_reference.c. Running the tests needs
neither this script nor Python; it is here so that the committed fixtures can be made again.

    reference.py                 writes tests/fixtures/NAME/ for every NAME below
    reference.py --check DIR...  loads checkpoints that ./train wrote, compares logits with ./run's, and records the
                                 result in tests/fixtures/loaded_by_transformers.txt

Needs torch, transformers, safetensors, numpy; loaded_by_transformers.txt names the versions. A fixture is a checkpoint
as save_pretrained writes it and expected.safetensors (all F32, also the ids):

    ids     (batch, len)         logits  (batch, len, vocab_size)         loss  (1): mean of -log p(next token)
    grad.P  as parameter P       prompt  (n)                              greedy  (m): what follows it by argmax

Expected values are computed in float64 from the weights as stored, then rounded to float32.

SPDX-License-Identifier: MIT
"""

import argparse
import itertools
import shutil
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MambaConfig, MambaForCausalLM

FIXTURES = Path(__file__).resolve().parent / "fixtures"
RECORD = FIXTURES / "loaded_by_transformers.txt"
BATCH, LEN, PROMPT, GREEDY = 2, 13, 2, 20  # the prompt is shorter than the convolution

BASE = dict(vocab_size=48, hidden_size=16, num_hidden_layers=2, state_size=8)

# name: what differs from BASE in the config, then options of write_fixture
MODELS = {
    "tied": (dict(state_size=16), {}),
    "untied": (dict(tie_word_embeddings=False, vocab_size=53), {}),
    "bias": (dict(use_bias=True), dict(extreme_delta=True)),
    "no_conv_bias": (dict(use_conv_bias=False), {}),
    "conv3": (dict(conv_kernel=3), {}),
    "conv1": (dict(conv_kernel=1), {}),
    "rank3": (dict(time_step_rank=3, hidden_size=24), {}),
    "expand3": (dict(expand=3, layer_norm_epsilon=0.01), {}),
    "state5": (dict(state_size=5), {}),
    "state1": (dict(state_size=1), {}),
    "all_odd": (dict(vocab_size=41, hidden_size=19, num_hidden_layers=3, state_size=3, conv_kernel=5, expand=3,
                     time_step_rank=5, use_bias=True, tie_word_embeddings=False), {}),
    "bf16": ({}, dict(dtype=torch.bfloat16)),
    "f16": ({}, dict(dtype=torch.float16)),
    "sharded": (dict(tie_word_embeddings=False), dict(max_shard_size="8KB")),
    "original": ({}, dict(original_name=True)),
}


def randomise(model, extreme_delta):
    """Random values for every parameter, so large that leaving any term out shows in the logits."""
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape)
        if name.endswith(("norm.weight", "norm_f.weight", "mixer.D")):
            p.data = 1 + 0.3 * noise
        elif name.endswith("A_log"):
            p.data += 0.3 * noise
        elif name.endswith("dt_proj.bias"):
            p.data = 1.5 * noise - 1
            if extreme_delta:  # both ends of softplus
                p.data[:2] = torch.tensor([25.0, -25.0])
        elif name.endswith("bias"):
            p.data = 0.3 * noise
        elif name.endswith(("embeddings.weight", "lm_head.weight")):
            p.data = 0.5 * noise
        else:
            p.data = noise / p[0].numel() ** 0.5


def in_double():
    """Transformers computes some terms in float32 whatever the model's type; within this context those are float64."""
    stack = ExitStack()
    stack.enter_context(mock.patch.object(torch, "float32", torch.float64))
    stack.enter_context(mock.patch.object(torch.Tensor, "float", torch.Tensor.double))
    return stack


def loss_and_gradients(model, ids):
    model.zero_grad()
    out = model(ids, labels=ids, use_cache=False)
    out.loss.backward()
    result = {"logits": out.logits.detach(), "loss": out.loss.detach().reshape(1)}
    for name, p in model.named_parameters():
        result["grad." + name] = p.grad.clone()
    return result


def greedy(model, prompt):
    """The ids that follow, and the smallest lead of a best logit over the second best, relative to the largest."""
    ids, lead = prompt, float("inf")
    for _ in range(GREEDY):
        logits = model(ids[None], use_cache=False).logits[0, -1]
        first, second = logits.topk(2).values
        lead = min(lead, ((first - second) / logits.abs().max()).item())
        ids = torch.cat([ids, logits.argmax()[None]])
    return ids[len(prompt):], lead


def difference(a, b):
    """The largest difference of two tensors, relative to the largest element."""
    return ((a.double() - b.double()).abs().max() / b.double().abs().max()).item()


def random_model(config, seed, dtype, extreme_delta):
    """A model whose parameters are exact in dtype, and ids to feed it."""
    torch.manual_seed(seed)
    model = MambaForCausalLM(MambaConfig(**{**BASE, **config})).eval()
    randomise(model, extreme_delta)
    model.generation_config.eos_token_id = None  # generate() goes on
    return model.to(dtype).float(), torch.randint(model.config.vocab_size, (BATCH, LEN))


def write_fixture(name, config, dtype=torch.float32, max_shard_size="5GB", original_name=False, extreme_delta=False):
    for seed in itertools.count(1):  # until argmax is far from a tie, the text varies and float32 suffices
        model, ids = random_model(config, seed, dtype, extreme_delta)
        prompt = ids[1, :PROMPT]
        single = loss_and_gradients(model, ids)
        with torch.no_grad():
            cached = model.generate(prompt[None], do_sample=False, max_new_tokens=GREEDY)[0, PROMPT:]
        with in_double():
            model.double()
            expected = loss_and_gradients(model, ids)
            with torch.no_grad():
                expected["greedy"], lead = greedy(model, prompt)
        worst = max((difference(single[key], expected[key]), key) for key in single)
        if lead > 0.005 and len(expected["greedy"].unique()) >= 6 and worst[0] < 5e-6:
            break
    assert expected["logits"].dtype == torch.float64 and torch.equal(cached, expected["greedy"])
    expected.update(ids=ids, prompt=prompt)
    expected = {key: value.to(torch.float32).contiguous() for key, value in expected.items()}

    where = FIXTURES / name
    shutil.rmtree(where, ignore_errors=True)
    model.to(dtype).save_pretrained(where, max_shard_size=max_shard_size)
    (where / "generation_config.json").unlink()
    if original_name:  # the first release of the weights used the singular
        path = where / "model.safetensors"
        weights = load_file(path)
        weights["backbone.embedding.weight"] = weights.pop("backbone.embeddings.weight")
        save_file(weights, path, metadata={"format": "pt"})
    save_file(expected, where / "expected.safetensors", metadata={"format": "pt"})
    size = sum(file.stat().st_size for file in where.iterdir())
    print(f"{name:13} seed {seed:3}  loss {expected['loss'].item():.4f}  largest logit "
          f"{expected['logits'].abs().max():5.2f}  float32 differs by {worst[0]:.1e} ({worst[1]})  {size} bytes")


def check(where, run):
    """Loads a checkpoint of ours and compares logits; returns the line to record."""
    model, info = AutoModelForCausalLM.from_pretrained(where, output_loading_info=True, dtype=torch.float32)
    assert isinstance(model, MambaForCausalLM)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not info[kind], f"{where}: {kind}: {info[kind]}"
    c = model.config
    ids = torch.randint(c.vocab_size, (64,), generator=torch.Generator().manual_seed(1))
    with tempfile.TemporaryDirectory() as scratch:
        rows = Path(scratch) / "logits"
        subprocess.run([run, where, "--ids", " ".join(map(str, ids.tolist())), "-n", "0", "--logits", rows], check=True)
        ours = torch.from_numpy(np.fromfile(rows, dtype="<f4")).reshape(len(ids), c.vocab_size)
    with torch.no_grad():
        theirs = model.eval()(ids[None], use_cache=False).logits[0]
    relative = difference(ours, theirs)
    assert relative < 1e-4, f"{where}: logits differ by {relative:.1e} of the largest"
    return (f"{Path(where).name}: {model.num_parameters()} parameters, vocab_size {c.vocab_size}, "
            f"hidden_size {c.hidden_size}, {c.num_hidden_layers} layers, state_size {c.state_size}, "
            f"conv_kernel {c.conv_kernel}, expand {c.expand}, time_step_rank {c.time_step_rank}, "
            f"use_bias {c.use_bias}, tied {c.tie_word_embeddings}: no missing or unexpected key; "
            f"logits of {len(ids)} ids differ by at most {(ours - theirs).abs().max():.1e}, "
            f"{relative:.1e} of the largest")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", nargs="+", metavar="DIR", help="checkpoints written by ./train")
    parser.add_argument("--run", default="./run", help="the program that makes their logits (%(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if args.check:
        versions = f"Transformers {transformers.__version__} (PyTorch {torch.__version__})"
        lines = [f"Written by ./train, loaded by {versions}, fp32 on a CPU:"]
        lines += [check(where, args.run) for where in args.check]
        RECORD.write_text("\n".join(lines) + "\n")
        print(RECORD.read_text(), end="")
        return
    for name, (config, options) in MODELS.items():
        write_fixture(name, config, **options)


if __name__ == "__main__":
    main()
