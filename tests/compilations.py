"""Compilations of a function, counted by JAX's events: its caches are private, and other tests evict their entries."""

import contextlib

import jax

_COMPILED = "/jax/core/compile/backend_compile_duration"


@contextlib.contextmanager
def compilations(name):
    """Yields a list that gets an entry for each program that is made of a compiled function of that name."""
    made = []

    def listen(event, duration, **details):
        if event == _COMPILED and details.get("fun_name") == f"jit({name})":
            made.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield made
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
