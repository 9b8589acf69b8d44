#!/bin/bash
# Cancel what is left in the queue of slurm-up.sh FOLDER, and end its daemons.
set -uo pipefail
folder=${1:?the folder of its state}
export SLURM_CONF=$folder/slurm.conf
timeout -k 2 10 scancel --user root
for _ in $(seq 50); do [ -z "$(timeout -k 2 10 squeue --noheader)" ] && break; sleep 0.1; done
[ "$(readlink /run/slurm/conf)" = "$folder" ] && rm /run/slurm/conf
for name in slurmd slurmctld munged; do
    [ -e "$folder/$name.pid" ] && kill "$(cat "$folder/$name.pid")"
done
for _ in $(seq 50); do pgrep -x slurmd > /dev/null || break; sleep 0.1; done
