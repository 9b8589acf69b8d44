#!/bin/bash
# A one-node Slurm on loopback, as root, from Debian's packages slurm-wlm and munge: slurm-up.sh FOLDER, for its state.
# It pretends to have four CPUs and four GPUs (character devices that are /dev/null). slurm-down.sh ends it.
set -euo pipefail
folder=${1:?a folder for its state}
mkdir -p "$folder"/{controller,node,log}
export SLURM_CONF=$folder/slurm.conf
host=$(hostname -s)
for k in 0 1 2 3; do [ -e "$folder/gpu$k" ] || mknod "$folder/gpu$k" c 1 3; done
echo "NodeName=$host Name=gpu File=$folder/gpu[0-3]" > "$folder/gres.conf"
cat > "$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$folder/controller
SlurmdSpoolDir=$folder/node
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ReturnToService=2
MinJobAge=3600
JobCompType=jobcomp/none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
GresTypes=gpu
NodeName=$host NodeAddr=127.0.0.1 CPUs=4 RealMemory=16000 Gres=gpu:4 State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
if ! pgrep -x munged > /dev/null; then
    mkdir -p /run/munge
    chown munge: /run/munge /var/lib/munge /var/log/munge /etc/munge
    setpriv --reuid munge --regid munge --clear-groups munged --pid-file /run/munge/munged.pid
    cp /run/munge/munged.pid "$folder/munged.pid"
fi
slurmctld
slurmd
for _ in $(seq 100); do
    if sinfo --noheader --format %t 2> /dev/null | grep -q -x idle; then
        # for `srun` within jobs, which Snakemake starts without SLURM_CONF; not before it answers, as all wait for it
        mkdir -p /run/slurm
        ln -sfn "$folder" /run/slurm/conf
        exit 0
    fi
    sleep 0.2
done
echo "no idle node after 20 seconds; see $folder/log" >&2
exit 1
