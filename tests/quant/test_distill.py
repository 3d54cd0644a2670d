"""Distillation of token states and vectors from a teacher with another tokenizer."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from training_samples import TINY, TOPICS

from pplx_edge.errors import CheckpointError
from pplx_quant.alignment import align, shares
from pplx_quant.checkpoint import read_model
from pplx_quant.distributed import World
from pplx_quant.errors import ConfigError
from pplx_quant.stages.distill import (
    DistillConfig,
    DistillStage,
    nearest_rotation,
    padded,
    piece_states,
    principal_rotation,
    run,
)
from pplx_quant.teacher import Teacher

WIDTH = TINY.hidden_size


@pytest.fixture
def config(text_file, tokenizer_folder, teacher_folder, tmp_path):
    return DistillConfig(
        data=text_file,
        out=tmp_path / "run",
        tokenizer=tokenizer_folder,
        teacher=teacher_folder,
        layers=2,
        hidden_size=WIDTH,
        heads=4,
        kv_heads=2,
        head_dim=8,
        intermediate_size=48,
        max_tokens=128,
        batch=8,
        block=4,
        steps=4,
        warmup=1,
        log_every=1,
        save_every=2,
        call_tokens=256,
        dims=(WIDTH, 16),
        matrix_rate=5e-3,
        embedding_rate=0.0,
        precision="float32",
        seed=2,
    )


def slow_shares(student, teacher, n_characters):
    """Return the shares [S, T] by looking at each character."""
    owner, last = {}, None
    filled = [number for number, (start, stop) in enumerate(teacher) if stop > start]
    for character in range(n_characters):
        for number in filled:
            if teacher[number][0] == character:
                last = number
        owner[character] = filled[0] if last is None else last
    found = np.zeros((len(student), len(teacher)))
    for row, (start, stop) in enumerate(student):
        for character in range(start, max(stop, start + 1)):
            found[row, owner[character]] += 1 / max(1, stop - start)
    return found


def test_shares_are_those_of_a_look_at_each_character():
    generator = np.random.default_rng(0)
    for _ in range(200):
        n_characters = int(generator.integers(4, 30))

        def cut(gaps, n_characters=n_characters):
            bounds = np.unique(np.r_[0, generator.integers(0, n_characters, 5), n_characters])
            spans = np.stack([bounds[:-1], bounds[1:]], axis=1)
            return spans[generator.random(len(spans)) < 0.8] if gaps else spans

        student, teacher = cut(gaps=False), np.concatenate([[[0, 0]], cut(gaps=True), [[0, 0]]])
        if (teacher[:, 1] > teacher[:, 0]).any():
            tokens, sources, weights = shares(student, teacher)
            found = np.zeros((len(student), len(teacher)))
            found[tokens, sources] = weights
            np.testing.assert_allclose(found, slow_shares(student.tolist(), teacher.tolist(), n_characters), atol=1e-6)


def test_equal_tokenizers_are_aligned_by_the_identity_and_special_tokens_are_left_out():
    spans = [np.array([[0, 3], [3, 7]]), np.array([[0, 2], [2, 5], [5, 6]])]
    teacher = [np.concatenate([[[0, 0]], part, [[0, 0]]]) for part in spans]
    states = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    carried = align(spans, teacher, width=5).carry(states)
    assert torch.equal(carried[0, :2], states[0, 1:3])
    assert torch.equal(carried[1], states[1, 1:4])
    assert not carried[0, 2].any()  # padding


def test_a_teacher_that_covers_nothing_is_refused():
    with pytest.raises(ValueError, match="no token with characters"):
        shares(np.array([[0, 3]]), np.array([[0, 0]]))


def test_the_teacher_returns_states_spans_without_prompt_and_the_mean_over_all_tokens(teacher_folder):
    teacher = Teacher(teacher_folder)
    texts, prompts = ["which rivers are number 7?", "Planets."], ["query: ", "query: "]
    call = teacher(texts, prompts, [0, 2, 4])
    for row, text in enumerate(texts):
        alone = teacher([text], ["query: "], [0, 2, 4])
        n_tokens = len(alone.spans[0])
        torch.testing.assert_close(call.layers[:, row, :n_tokens], alone.layers[:, 0], atol=1e-5, rtol=1e-4)
        mean = alone.layers[-1, 0].mean(dim=0)
        torch.testing.assert_close(call.vectors[row], mean / mean.norm(), atol=1e-5, rtol=1e-4)
        covered = "".join(text[start:stop] for start, stop in call.spans[row])
        assert covered == text.replace(" ", "")
    embedded = teacher.embeddings(texts, prompts)
    torch.testing.assert_close(embedded.layers[0], call.layers[0], atol=1e-5, rtol=1e-4)


def test_a_teacher_in_bfloat16_has_nearly_the_same_states(teacher_folder):
    texts, prompts = ["The cat sat on the mat.", "A dog."], ["query: ", "query: "]
    exact, fast = (Teacher(teacher_folder, bfloat16=half)(texts, prompts, [0, 2]) for half in (False, True))
    assert fast.layers.dtype == fast.vectors.dtype == torch.float32
    for row, spans in enumerate(exact.spans):
        np.testing.assert_array_equal(fast.spans[row], spans)
        places = spans[:, 1] > spans[:, 0]
        ours, theirs = fast.layers[:, row, : len(spans)][:, places], exact.layers[:, row, : len(spans)][:, places]
        assert (ours - theirs).square().mean() < 1e-3 * theirs.var()
    torch.testing.assert_close(fast.vectors, exact.vectors, atol=0.02, rtol=0)


def test_a_directory_without_a_model_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="not a teacher"):
        Teacher(tmp_path)


def test_the_rotation_is_orthogonal_and_its_last_axis_is_the_mean():
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(500, 12, generator=generator) * torch.linspace(3, 0.1, 12) + 5 * torch.randn(
        12, generator=generator
    )
    rotation = principal_rotation(states, (12, 4), seed=1)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(12), atol=1e-5, rtol=0)
    turned = states @ rotation.T
    torch.testing.assert_close(rotation[-1], torch.nn.functional.normalize(states.mean(0), dim=0), atol=1e-5, rtol=0)
    variances = turned.var(dim=0)
    assert variances[:4].min() > variances[4:-1].max()  # the first range has the largest axes
    principal = torch.linalg.eigvalsh(torch.cov(turned[:, :4].T))
    assert variances[:4].max() < principal.max()  # mixed within a range
    assert variances[:4].min() > principal.min()
    table = states[:300] @ rotation.T
    torch.testing.assert_close(nearest_rotation(states[:300], table), rotation, atol=1e-4, rtol=0)


def test_pieces_have_the_mean_embedding_of_the_places_where_they_stand(teacher_folder, tokenizer_folder):
    teacher = Teacher(teacher_folder)
    student = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    text = "which rivers are number 7?"
    found = piece_states(teacher, student, [text], "")
    item = student.encode(text)
    call = teacher.embeddings([text], [""])
    carried = align([np.array(item.offsets)], call.spans, call.layers.shape[2]).carry(call.layers[0])[0]
    token = item.ids[0]
    places = [place for place, other in enumerate(item.ids) if other == token]
    alone = teacher.embeddings([student.decode([token])], [""])
    keep = torch.from_numpy(alone.spans[0][:, 1] > alone.spans[0][:, 0])
    own = align([np.array([[0, len(student.decode([token]))]])], alone.spans, len(keep)).carry(alone.layers[0])[0, 0]
    expected = (own + carried[places].sum(dim=0)) / (1 + len(places))
    torch.testing.assert_close(found[token], expected, atol=1e-5, rtol=1e-4)
    assert found.isfinite().all()


def test_what_positions_add_is_taken_away(config, monkeypatch):
    stage, generator = DistillStage(config), np.random.default_rng(0)
    words = [f"{topic} number" for topic in TOPICS]

    def texts(n_texts: int) -> list[str]:
        return [" ".join(generator.choice(words, 10)) for _ in range(n_texts)]

    def share(states: torch.Tensor) -> float:
        """The share of the variance of states `[L, B, T, D]` that their mean at each position explains."""
        centred = states - states.mean(dim=(1, 2), keepdim=True)
        return float(centred.mean(dim=1).square().mean() / centred.square().mean())

    monkeypatch.setattr(stage, "_strings", lambda n_pairs, step: texts(n_pairs))
    means, states = stage._sample()
    call = stage.teacher(texts(200), ["passage: "] * 200, stage.layers)
    width = call.layers.shape[2]
    words_only = torch.from_numpy(np.stack([padded(spans, width) for spans in call.spans]).all(axis=0))
    before, after = call.layers[:, :, words_only], stage.space.position[:, None, :width][:, :, words_only]
    assert words_only.sum() > 10
    assert share(before - after) < 0.4 * share(before)
    assert means.shape == (160, WIDTH)
    assert states.shape[0] == 3


def test_the_table_starts_at_the_mean_of_the_first_target(config):
    stage = DistillStage(config)
    model = stage.start_model()
    rows, strings, prompts, spans = stage.draw(0)
    lesson = stage.lesson(0, 0, [strings, prompts, spans])
    mask = torch.from_numpy(np.stack([np.arange(max(map(len, rows))) < len(row) for row in rows]))
    before, target = ((lesson.states @ stage.space.rotation.T)[layer][mask].mean(dim=0) for layer in (0, 1))
    start = model.embed_tokens(torch.from_numpy(np.concatenate([row.ids for row in rows]))).mean(dim=0)
    assert (start - target).norm() < 0.8 * (before - target).norm()


def log_lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_blocks_learn_the_layers_of_the_teacher(config):
    run(replace(config, steps=40, save_every=60, matrix_rate=1e-2))
    lines = [line for line in log_lines(config.out) if "error_1" in line]
    first, last = lines[0], lines[-1]
    for number in (1, 2):
        assert last[f"error_{number}"] < 0.75 * first[f"error_{number}"]
    model = read_model(config.out / "checkpoint")
    assert model.norm.weight[-1] == 0


def test_a_block_is_judged_by_what_it_makes_of_the_teachers_state(config):
    stage = DistillStage(config)
    model = stage.start_model()
    rows, strings, prompts, spans = stage.draw(0)
    with torch.no_grad():
        for block in model.blocks:  # a new block adds nothing
            block.self_attn.o_proj.weight.normal_(0, 0.1)
        lesson = stage.lesson(0, 0, [strings[:3], prompts[:3], spans[:3]])
        errors, vectors = stage.call_errors(model, rows[:3], lesson)
        expected = torch.zeros(2)
        for row in range(3):
            n_tokens = len(rows[row])
            found = stage.teacher([strings[row]], [prompts[row]], stage.layers)
            states = align([spans[row]], found.spans, found.layers.shape[2])
            layers = found.layers - stage.space.position[:, None, : found.layers.shape[2]]
            targets = torch.stack([states.carry(layer) for layer in layers]) @ stage.space.rotation.T
            from pplx_edge.models.qwen3_torch import rotary_table

            cos, sin = rotary_table(torch.arange(n_tokens), model.spec.head_dim, model.spec.rope_theta)
            for number, block in enumerate(model.blocks):
                x = model.embed_tokens(torch.from_numpy(rows[row].ids))[None] if number == 0 else targets[number]
                output = block(x, cos, sin, None)
                expected[number] += (output - targets[number + 1]).square().mean(dim=2).sum() / stage.space.change[
                    number
                ]
    torch.testing.assert_close(errors, expected, atol=1e-3, rtol=1e-3)
    assert not vectors


def test_end_to_end_continues_from_weights_alone_and_in_the_same_axes(config, tmp_path):
    run(config)
    local = DistillStage(config)
    second = replace(
        config,
        tokenizer=None,
        init=config.out / "checkpoint",
        out=tmp_path / "second",
        inputs="student",
        steps=20,
        save_every=30,
        matrix_rate=2e-3,
    )
    space = load_file(config.out / "checkpoint" / "training_state.safetensors")
    for name in ("training_state.safetensors", "training_state.json"):
        (config.out / "checkpoint" / name).unlink()
    stage = DistillStage(second)
    stage.start_model()
    torch.testing.assert_close(stage.space.rotation, space["head.rotation"], atol=1e-4, rtol=0)
    assert local.layers == stage.layers == [0, 2, 4]
    run(second)
    lines = [line for line in log_lines(second.out) if "vector_error" in line]
    assert lines[-1]["error_2"] < lines[0]["error_2"] / 2  # vectors need more than 20 steps of 8 pairs
    assert all(0 < line["vector_error"] < 2 for line in lines)


def test_a_stopped_run_continues_to_the_same_weights_also_from_the_cache(config, tmp_path):
    run(replace(config, out=tmp_path / "whole"))
    cached = replace(config, teacher_cache=tmp_path / "cache")
    run(replace(cached, minutes=1e-9))
    lines = log_lines(config.out)
    assert lines[-1]["step"] == 1
    run(cached)
    whole, resumed = (
        load_file(folder / "checkpoint" / "model.safetensors") for folder in (tmp_path / "whole", config.out)
    )
    for name, weight in whole.items():
        assert torch.equal(weight, resumed[name]), name
    assert len(list((tmp_path / "cache").glob("*/*.safetensors"))) >= 4
    again = replace(cached, out=tmp_path / "again")
    run(again)  # from the cache alone: half precision
    weights = load_file(again.out / "checkpoint" / "model.safetensors")
    for name, weight in whole.items():
        torch.testing.assert_close(weight, weights[name], atol=2e-2, rtol=1e-1)


def test_two_shares_of_a_step_sum_to_the_whole(config):
    stage = DistillStage(replace(config, inputs="student"))
    model = stage.start_model()

    def gradient(world):
        model.zero_grad()
        stage.accumulate(model, 0, world)
        return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}

    class Alone(World):
        def sum(self, tensor):
            return tensor

    whole = gradient(World())
    parts = [gradient(Alone(rank, 2)) for rank in range(2)]
    for name, value in whole.items():
        total = sum(part[name] for part in parts if name in part)
        torch.testing.assert_close(total, value, atol=1e-5, rtol=1e-3)


def test_what_cannot_work_is_refused(config, packed_file):
    with pytest.raises(ConfigError, match="--keep-text"):
        DistillStage(replace(config, data=packed_file))
    with pytest.raises(ConfigError, match="32 wide"):
        DistillStage(replace(config, hidden_size=64))
    with pytest.raises(ConfigError, match="--teacher is required"):
        replace(config, teacher=None)
    with pytest.raises(ConfigError, match="--inputs both"):
        replace(config, inputs="both")
    with pytest.raises(ConfigError, match="--prompts"):
        replace(config, prompts=("query: ",))
