# Process 1 of the guest once the host's tree is its root: set up a software RDMA device, run the job, power off.
#
# The kernel's command line names the folders: guest_work holds the kernel's modules, out is what the guest may write.

argument() { sed -n "s/.*\b$1=\([^ ]*\).*/\1/p" /proc/cmdline; }

WORK=$(argument guest_work)
export PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
mount -t tmpfs run /run
mkdir -p /dev/shm /dev/pts /run/out
mount -t tmpfs shm /dev/shm
mount -t tmpfs tmp /tmp
mount -t devpts pts /dev/pts
ln -sf /proc/self/fd /dev/fd
if [ "$(argument guest)" = uml ]; then # all that is needed is built in
    mount -t hostfs -o "$WORK/out" none /run/out
else
    mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 out /run/out
    mkdir -p /lib/modules
    mount --bind "$WORK/kernel/lib/modules" /lib/modules # loading on demand looks there, too
    modprobe -a ib_uverbs rdma_ucm rdma_rxe fuse dummy
fi

ulimit -l unlimited
ip link set lo up
ip link add rdma0 type dummy
ip link set rdma0 mtu 9000 up # which gives verbs packets of 4096 bytes
ip address add 10.9.0.1/24 dev rdma0
rdma link add rxe0 type rxe netdev rdma0
sleep 1 # until its addresses are in the table of the device

bash /run/out/job </dev/null >/run/out/log 2>&1
echo $? >/run/out/verdict
sync
umount /run/out
/bin/busybox poweroff -f
