"""What is said of a backend's errors."""

from trainsys.comm.waiting import brief


def test_an_error_is_told_in_one_line_without_its_source() -> None:
    gloo = (
        "[/build/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:46757: Connection reset by peer. This is "
        "typically caused by a remote worker hanging or bugs in the application. GLHF!\nframe #0"
    )
    assert brief(RuntimeError(gloo)) == "Read error [127.0.0.1]:46757: Connection reset by peer"
    assert brief(ValueError("no room for it")) == "no room for it"
