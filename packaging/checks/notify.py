"""Runs hub and agent as systemd does, and hears what they say on NOTIFY_SOCKET: notify.py BINARY DIRECTORY"""

import os
import pathlib
import signal
import socket
import subprocess
import sys

binary, directory = sys.argv[1], pathlib.Path(sys.argv[2])
QUIET = {"NOWCONNECT__OBSERVABILITY__METRICS_PORT": "0", "PATH": "/usr/bin:/bin"}
HUB = QUIET | {
    "NOWCONNECT__TUNNEL__HOST": "127.0.0.1",
    "NOWCONNECT__TUNNEL__PORT": "0",
    "NOWCONNECT__ADMIN__BIND": "127.0.0.1:0",
}
AGENT = QUIET | {
    "NC_AGENT_URL": "ws://127.0.0.1:9/tunnel",
    "NC_AGENT_ID": "site-01",
    "NC_TOKEN_FILE": str(directory / "notify.jwt"),
    "NC_CONNECTORS": "ldap",
    "NC_TARGET_LDAP_HOST": "127.0.0.1",
    "NC_TARGET_LDAP_PORT": "389",
    "NC_HEALTH_PORT": "0",
}
(directory / "notify.jwt").touch(0o600)

for role, environment in (("hub", HUB), ("agent", AGENT)):
    path = directory / f"notify-{role}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard, open(directory / f"{role}.log", "wb") as log:
        heard.bind(str(path))
        heard.settimeout(20)
        process = subprocess.Popen([binary, role], env=environment | {"NOTIFY_SOCKET": str(path)}, stdout=log, stderr=log)

        def expect(word):
            said = heard.recv(4096).decode()
            if word not in said.splitlines():
                sys.exit(f"{role}: {said!r} where {word} was expected\n{pathlib.Path(log.name).read_text()}")

        try:
            expect("READY=1")
            process.send_signal(signal.SIGHUP)
            expect("RELOADING=1")
            expect("READY=1")
            process.send_signal(signal.SIGTERM)
            expect("STOPPING=1")
            if code := process.wait(60):
                sys.exit(f"{role}: exit code {code}")
        except TimeoutError:
            sys.exit(f"{role}: says nothing\n{pathlib.Path(log.name).read_text()}")
        finally:
            process.kill()
    os.remove(path)
print("hub and agent: READY, RELOADING, READY, STOPPING")
