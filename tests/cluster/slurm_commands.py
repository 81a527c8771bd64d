"""Stand-ins for Slurm's commands: they run at once, on this host, what they are handed."""

from pathlib import Path

COMMANDS = {
    "sbatch": """cat > "$SLURM_TEST/job.sh"; printf '%s\\n' "$@" > "$SLURM_TEST/sbatch.txt"
case "$*" in *--partition=none*) echo "sbatch: error: invalid partition specified: none" >&2
echo "sbatch: error: Batch job submission failed" >&2; exit 1;; esac; echo "7;cluster" """,
    "squeue": """cat "$SLURM_TEST/state" """,
    "scontrol": """if [ "$1" = show ]; then
printf '%s\\n' ${SLURM_TEST_HOSTS:-localhost elsewhere}; exit; fi
echo "$@" >> "$SLURM_TEST/scontrol.txt" """,
    "srun": """printf '%s\\n' "$@" > "$SLURM_TEST/srun.txt"; while [[ "$1" == --* ]]; do shift; done
for node in 0 1; do SLURM_NODEID=$node GLOO_SOCKET_IFNAME=${SLURM_TEST_NET:+$SLURM_TEST_NET$node} \
${SLURM_TEST_NET:+ip netns exec $SLURM_TEST_NET$node} "$@" & done
wait -n && wait -n || { code=$?; kill $(jobs -p); wait; exit $code; }""",
}


def install(folder: Path, monkeypatch, state: str = "7 RUNNING") -> Path:
    """Put the stand-ins on PATH; what they were told stands in `folder`."""
    (folder / "bin").mkdir(parents=True)
    for name, text in COMMANDS.items():
        path = folder / "bin" / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    (folder / "state").write_text(f"{state}\n")
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_TEST", str(folder))
    return folder
