"""`make demo` without its build: both streams say the same, and nothing is left."""

import shutil

from slipway.compiler.cli import demo


def test_demo(engine_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "build", lambda engine: shutil.copytree(engine_dir, engine))
    demo.run(tmp_path)
    out, err = capsys.readouterr()
    text, figures = out.split("gRPC stream", 1)
    first, second = text[: len(text) // 2], text[len(text) // 2 :]
    assert first == second and len(first) > 40
    assert figures.count("tokens/s") == 2 and "HTTP /generate_stream" in figures
    assert "no process and no shared memory region is left" in err
