"""Weights of words: what is read, what is refused, and what they do to embeddings."""

import random
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.text import emphasized, parse


@pytest.mark.parametrize(
    "prompt, expected",
    [
        ("", []),
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("[less] of ((this))", [("less", 1 / 1.1), (" of ", 1.0), ("this", 1.1**2)]),
        ("(one)(two)", [("onetwo", 1.1)]),
        ("(a:1.3) (b: .5 ) (c:+2)(d:-1)", [("a", 1.3), (" ", 1), ("b", 0.5), (" ", 1), ("c", 2), ("d", -1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).)",
            [
                ("a ", 1.0),
                ("house", 1.3 * 1.1**2),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.1**4),
                (".", 1.1),
            ],
        ),
        (r"\(literal\] \[x\) \\ \a", [(r"(literal] [x) \ a", 1.0)]),
        (r"(ratio 16\:9)", [("ratio 16:9", 1.1)]),
        ("(note: this) x:1.3", [("note: this", 1.1), (" x:1.3", 1.0)]),
        ("[day:night]", [("day:night", 1 / 1.1)]),
        ("(a:b:1.5)", [("a:b", 1.5)]),
        ("(:1.5)()x", [("x", 1.0)]),
        ("(東京 😀:1.2)", [("東京 😀", 1.2)]),
    ],
)
def test_what_is_written_is_read(prompt, expected):
    found = parse(prompt)
    assert [text for text, _ in found] == [text for text, _ in expected]
    np.testing.assert_allclose([weight for _, weight in found], [weight for _, weight in expected], rtol=1e-12)


@pytest.mark.parametrize(
    "prompt, place, what",
    [
        ("a (b", 2, "( is not closed"),
        ("(a:1.3", 0, "( is not closed"),
        ("([a)]", 3, ") closes nothing"),
        ("a) b", 1, ") closes nothing"),
        ("(x]", 2, "] closes nothing"),
        ("(x:1.3]", 6, "] closes nothing"),
        ("(a:)", 2, "'' is not a number"),
        ("(a:1.2.3)", 2, "'1.2.3' is not a number"),
        ("(a:1,3)", 2, "'1,3' is not a number"),
        ("(a:--1)", 2, "'--1' is not a number"),
        ("(a:1e999)", 2, "'1e999' is not a number"),
        ("[a:1.3]", 2, "'1.3' in square brackets"),
        ("a\\", 1, "a backslash that escapes nothing"),
    ],
)
def test_what_is_malformed_is_refused(prompt, place, what):
    with pytest.raises(ValueError) as error:
        parse(prompt)
    assert f"prompt {prompt!r}, at character {place}: " in str(error.value) and what in str(error.value)


def drawn_tree(rng, depth=0):
    """(prompt, [(letter, weight)]) of random nesting."""
    prompt, letters = "", []
    for _ in range(rng.randint(1, 4)):
        kind = rng.choice(["text", "round", "square", "explicit"]) if depth < 4 else "text"
        if kind == "text":
            text = "".join(rng.choice("ab ,()[]\\:é😀") for _ in range(rng.randint(0, 6)))
            prompt += "".join(f"\\{letter}" if letter in "()[]\\:" else letter for letter in text)
            letters += [(letter, 1.0) for letter in text]
            continue
        inner, parts = drawn_tree(rng, depth + 1)
        weight = {"round": 1.1, "square": 1 / 1.1, "explicit": rng.choice([0.3, 1.3, 2.0])}[kind]
        prompt += {"round": f"({inner})", "square": f"[{inner}]", "explicit": f"({inner}:{weight})"}[kind]
        letters += [(letter, one * weight) for letter, one in parts]
    return prompt, letters


def test_random_nesting_is_read():
    rng = random.Random(0)
    for _ in range(300):
        prompt, letters = drawn_tree(rng)
        segments = parse(prompt)
        found = [(letter, weight) for text, weight in segments for letter in text]
        assert [letter for letter, _ in found] == [letter for letter, _ in letters], prompt
        np.testing.assert_allclose([w for _, w in found], [w for _, w in letters], rtol=1e-12, err_msg=prompt)
        assert all(one.weight != two.weight for one, two in pairwise(segments))


def test_stress_scales_tokens_among_each_other_and_keeps_the_mean():
    rng = np.random.default_rng(0)
    z, w = rng.normal(1, 1, (3, 7, 5)).astype(np.float32), rng.uniform(0.5, 2, (3, 7)).astype(np.float32)
    out = emphasized(z, w)
    np.testing.assert_allclose(out.mean((1, 2)), z.mean((1, 2)), rtol=1e-5)
    ratio = out / z
    np.testing.assert_allclose(ratio / ratio[:, :1], np.broadcast_to((w / w[:, :1])[..., None], z.shape), rtol=1e-4)
    np.testing.assert_allclose(emphasized(z[:1], w[:1]), out[:1], rtol=1e-6)
    np.testing.assert_array_equal(emphasized(z, np.ones_like(w)), z)
    traced = jax.jit(emphasized)(jnp.asarray(z), jnp.asarray(w))
    np.testing.assert_allclose(traced, out, rtol=1e-5)


def test_a_mean_of_zero_gives_no_nan():
    w = np.array([[1.0, 2.0]], np.float32)
    assert (emphasized(np.zeros((1, 2, 4), np.float32), w) == 0).all()
    balanced = np.array([[[1.0, -1.0], [3.0, -3.0]]], np.float32)
    np.testing.assert_array_equal(emphasized(balanced, w), balanced * w[..., None])


def test_narrow_embeddings_are_weighted_in_float32():
    rng = np.random.default_rng(1)
    z, w = rng.normal(2, 1, (2, 6, 8)).astype(np.float32), rng.uniform(0.5, 2, (2, 6)).astype(np.float32)
    narrow = jnp.asarray(z, jnp.bfloat16)
    out = emphasized(narrow, jnp.asarray(w))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out, emphasized(narrow.astype(jnp.float32), jnp.asarray(w)).astype(jnp.bfloat16))


def test_break_begins_another_piece():
    found = parse("a (b BREAK c:1.3)\nBREAK BREAK d BREAKS")
    assert [text for text, _ in found] == ["a ", "b", "", "c", "", "", "d BREAKS"]
    assert [weight for _, weight in found] == [1.0, 1.3, 1.0, 1.3, 1.0, 1.0, 1.0]
    assert parse(r"\BREAK") == [("BREAK", 1.0)]


@pytest.mark.parametrize(
    "prompt, place",
    [
        ("a AND b", 2),
        ("a <lora:detail:0.8>", 2),
        ("<hypernet:x>", 0),
        ("a __animals/cat__", 2),
        ("a [cat|dog]", 6),
        ("[cat:dog:0.5]", 8),
        ("[cat:10]", 4),
    ],
)
def test_what_the_web_ui_does_not_read_as_text_is_refused_unless_it_is_escaped(prompt, place):
    with pytest.raises(ValueError, match=f"at character {place}: .*not read.*\\\\"):
        parse(prompt)
    escaped = prompt[:place] + "\\" + prompt[place:]
    assert "".join(text for text, _ in parse(escaped)) == prompt.replace("[", "").replace("]", "")


@pytest.mark.parametrize("prompt", ["cat and dog", "SAND", "a < b > c", "^__^", "my__name__x", "a|b", "(a|b)", "x:y"])
def test_text_that_looks_like_syntax_is_text(prompt):
    assert "".join(text for text, _ in parse(prompt)) == prompt.strip("()")


def test_prompts_of_a_million_characters_are_read_at_once():
    for piece in (" ", "/__a", "<lora:", "B", "\\("):
        assert parse(piece * (10**5 // len(piece)))
