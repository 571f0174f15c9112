"""Builds the image's last stage as it is written and runs a hub and an agent from it: image.py BINARY DIRECTORY

The first stage, which compiles, is replaced by the binary that is there already (base images cannot be pulled everywhere).
Wants root, buildah and crun; what runs has a network of its own.
"""

import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import threading
import time

if os.environ.get("IMAGE_TRIAL_APART") is None:
    os.environ["IMAGE_TRIAL_APART"] = "yes"
    # crun wants one hierarchy of control groups, also where this machine still has two.
    apart = 'ip link set lo up && mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec "$@"'
    os.execvp("unshare", ["unshare", "--net", "--mount", "sh", "-c", apart, "sh", sys.executable, *sys.argv])

binary, work = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]).resolve() / "image"
here = pathlib.Path(__file__).resolve().parent.parent
STORE = ["--root", f"{work}/store", "--runroot", f"{work}/run", "--storage-driver", "vfs"]
CRUN = ["crun", "--root", f"{work}/crun", "--cgroup-manager", "disabled"]


def run(*command, **more):
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout}")
    return done.stdout.strip()


def build():
    """The tree that the first stage leaves, and the stage that ships."""
    out = work / "context/out"
    for directory in ("usr/bin", "etc/ssl/certs", "etc/nowconnect", "usr/share/doc/nowconnect"):
        (out / directory).mkdir(parents=True)
    shutil.copy2(binary, out / "usr/bin/nowconnect")
    shutil.copy2(here.parent / "LICENSE", out / "usr/share/doc/nowconnect")
    shutil.copy2("/etc/ssl/certs/ca-certificates.crt", out / "etc/ssl/certs")
    (out / "etc/passwd").write_text("nowconnect:x:65532:65532::/:/sbin/nologin\n")
    (out / "etc/group").write_text("nowconnect:x:65532:\n")
    linked = subprocess.run(["ldd", binary], capture_output=True, text=True).stdout
    for library in re.findall(r"(?:=> )?(/\S+) \(0x", linked):  # only of a binary that is not static
        (out / library[1:]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, out / library[1:])
    stage = re.split(r"^FROM scratch$", (here / "Dockerfile").read_text(), flags=re.MULTILINE)[1]
    (work / "Dockerfile").write_text(f"FROM scratch AS build\nCOPY out/ /out/\nFROM scratch{stage}")
    run("buildah", *STORE, "build", "--isolation", "chroot", "--format", "docker", "--tag", "nowconnect", "--file", work / "Dockerfile",
        work / "context")
    container = run("buildah", *STORE, "from", "--pull-never", "localhost/nowconnect")
    image = json.loads(run("buildah", *STORE, "inspect", "--type", "image", "localhost/nowconnect"))["Docker"]["config"]
    return image, run("buildah", *STORE, "mount", container)


def start(name, image, root, arguments, environment):
    """As an engine does it with --read-only --cap-drop ALL --security-opt no-new-privileges."""
    bundle = work / name
    bundle.mkdir()
    run("crun", "spec", cwd=bundle)
    config = json.loads((bundle / "config.json").read_text())
    uid, gid = map(int, image["User"].split(":"))
    config["root"] = {"path": root, "readonly": True}
    config["process"] |= {
        "terminal": False, "user": {"uid": uid, "gid": gid}, "cwd": image["WorkingDir"], "noNewPrivileges": True,
        "args": image["Entrypoint"] + (arguments or image["Cmd"]), "env": image["Env"] + environment, "capabilities": {},
    }
    config["process"].pop("rlimits", None)
    config["mounts"] = [mount for mount in config["mounts"] if mount["type"] != "cgroup"]
    config["mounts"].append({"destination": "/etc/nowconnect", "type": "bind", "source": f"{work}/etc", "options": ["bind", "ro"]})
    config["linux"]["namespaces"] = [n for n in config["linux"]["namespaces"] if n["type"] not in ("network", "cgroup")]
    config["linux"].pop("resources", None)
    (bundle / "config.json").write_text(json.dumps(config))
    log = open(work / f"{name}.log", "wb")
    return subprocess.Popen([*CRUN, "run", "--bundle", bundle, name], stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def healthy(name, process, image, environment=()):
    """The image's own health check, run as the engine runs it."""
    test = image["Healthcheck"]["Test"]
    assert test[0] == "CMD", test
    settings = [word for one in environment for word in ("--env", one)]
    deadline = time.monotonic() + 30
    while True:
        done = subprocess.run([*CRUN, "exec", *settings, name, *test[1:]], capture_output=True, text=True)
        if done.returncode == 0:
            return done.stdout.strip()
        if time.monotonic() > deadline or process.poll() is not None:
            sys.exit(f"{name}: {done.stderr}\n{(work / f'{name}.log').read_text()}")
        time.sleep(0.2)


def echo(listener):
    while True:
        peer = listener.accept()[0]
        with peer:
            while data := peer.recv(4096):
                peer.sendall(data)


def configure():
    etc = work / "etc"
    etc.mkdir()
    run(binary, "token", "keygen", "--out", work / "key.pem")
    run(binary, "token", "jwks", "--key", work / "key.pem", "--out", etc / "jwks.json")
    run(binary, "token", "mint", "--key", work / "key.pem", "--agent-id", "site-01", "--audience", "nowconnect", "--connectors", "echo",
        "--out", etc / "agent.jwt")
    os.chown(etc / "agent.jwt", 65532, 65532)
    (etc / "cloud.yaml").write_text(
        "listeners: [{ name: echo, bind: '127.0.0.1:3890', connector: echo }]\n"
        "security: { jwks_url: 'file:///etc/nowconnect/jwks.json', audience: nowconnect }\n"
    )
    (etc / "premise.yaml").write_text(
        "tunnel:\n  url: ws://127.0.0.1:8765/tunnel\n  agent_id: site-01\n  exported_connectors: [echo]\n"
        "  auth: { token_file: agent.jwt }\n"
        "targets: { echo: { host: 127.0.0.1, port: 7007 } }\n"
    )


work.mkdir(parents=True)
image, root = build()
held = sorted(str(p.relative_to(root)) for p in pathlib.Path(root).rglob("*") if p.is_file() and os.access(p, os.X_OK))
assert held[-1] == "usr/bin/nowconnect", held
assert image["User"] == "65532:65532" and image["StopSignal"] == "SIGTERM", image
configure()
listener = socket.create_server(("127.0.0.1", 7007))
threading.Thread(target=echo, args=(listener,), daemon=True).start()
of_agent = ["NC_HEALTH_URL=http://127.0.0.1:8090"]
hub = start("hub", image, root, None, [])
agent = None
try:
    said = healthy("hub", hub, image)
    agent = start("agent", image, root, ["agent", "--config", "premise.yaml"], of_agent)
    said += f"; {healthy('agent', agent, image, of_agent)}"
    with socket.create_connection(("127.0.0.1", 3890), 10) as flow:
        flow.settimeout(10)
        flow.sendall(b"through the image")
        assert flow.recv(4096) == b"through the image"
    status = run(*CRUN, "exec", "hub", "/usr/bin/nowconnect", "status")
    assert "site-01" in status, status
    pid = json.loads(run(*CRUN, "state", "hub"))["pid"]
    facts = pathlib.Path(f"/proc/{pid}/status").read_text()
    for fact in ("Uid:\t65532", "CapEff:\t0000000000000000", "NoNewPrivs:\t1"):
        assert fact in facts, facts
finally:
    for name, process in (("agent", agent), ("hub", hub)):
        if process is not None:
            subprocess.run([*CRUN, "kill", name, image["StopSignal"].removeprefix("SIG")], stderr=subprocess.DEVNULL)
            code = process.wait(60)
            if code and sys.exc_info()[0] is None:
                sys.exit(f"{name}: exit code {code}\n{(work / f'{name}.log').read_text()}")
            subprocess.run([*CRUN, "delete", "--force", name], stderr=subprocess.DEVNULL)
size = sum(p.stat().st_size for p in pathlib.Path(root).rglob("*") if p.is_file() and not p.is_symlink())
print(f"{size / 1e6:.1f} MB; read-only, no capabilities, as {image['User']}: {said}; a flow passed, SIGTERM drained")
