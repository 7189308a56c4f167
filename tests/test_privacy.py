"""Nothing that is trained or predicted looks up a name, opens a connection, or leaves a file elsewhere."""

import os
import re
import shutil
import subprocess
import sys

# Stands in for strace where that is not installed: what Python itself would look up or connect to.
WATCH = """
import socket
def refuse(*arguments, **options):
    raise SystemExit(f"phones home: {arguments}")
socket.getaddrinfo = refuse
socket.socket.connect = lambda self, address: refuse(address)
"""

WORK = """
import sys
import headstart
data, run, weights = sys.argv[1:]
for options in ({}, {"backbone": "test_vit", "weights": weights, "engine": "openvino"}):
    headstart.fit(data, run, strategy="linear-probe", device="cpu", overwrite=True, **options)
    for prediction in headstart.predict(run, [data], engine="openvino"):
        assert not prediction.error
    backbone = headstart.load_backbone(*list(options.values())[:1], weights=options.get("weights"))
    runtime = headstart.Runtime(engine="openvino", precision="fp32")
    headstart.extract(headstart.load_dataset(data), backbone, runtime)
print("done")
"""

# The C library and PyTorch keep semaphores and shared memory there, which are no files of a disk.
ELSEWHERE = re.compile(r'"(/dev|/proc|/sys)/')


def test_nothing_phones_home_or_writes_elsewhere(loose, tiny, tmp_path):
    places = {name: tmp_path / name for name in ("home", "here", "tmp", "cache")}
    for place in places.values():
        place.mkdir()
    # No variable that would switch anything off, as on a user's machine.
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(places["home"]),
        "TMPDIR": str(places["tmp"]),
        "HEADSTART_CACHE_DIR": str(places["cache"]),
    }
    code = [sys.executable, "-c", WATCH + WORK, str(loose), str(tmp_path / "run"), tiny["weights"]]
    log = tmp_path / "calls"
    calls = "connect,sendto,sendmsg,sendmmsg,open,openat,creat,mkdir,mkdirat"
    strace = ["strace", "-f", "--seccomp-bpf", "-qq", "-e", f"trace={calls}", "-o", str(log)]
    traced = shutil.which("strace") is not None
    done = subprocess.run(
        [*(strace if traced else []), *code],
        cwd=places["here"], env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.endswith("done\n")
    assert [*places["home"].rglob("*"), *places["here"].rglob("*")] == []
    if traced:
        lines = log.read_text(errors="replace").splitlines()
        assert any("openat" in line for line in lines)
        internet = [line for line in lines if "AF_INET" in line]
        assert internet == []
        made = [
            line for line in lines if ("O_CREAT" in line or "mkdir" in line) and " = -1" not in line
        ]
        assert [m for m in made if str(tmp_path) not in m and not ELSEWHERE.search(m)] == []
