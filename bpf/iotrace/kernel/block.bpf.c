// SPDX-License-Identifier: GPL-2.0 OR MIT
// How long a block device takes: from the start of a request to its completion, per device and operation.
#include "kernel.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

enum { MAX_DEVICES = 256, OPERATIONS = 3, REQ_OP_MASK = 0xff };

struct block_device {
	__u32 bd_dev;
} FIELDS;
struct gendisk {
	struct block_device *part0;
} FIELDS;
struct request_queue {
	struct gendisk *disk;
} FIELDS;
struct request {
	struct request_queue *q;
	__u32 cmd_flags;
	__u64 start_time_ns;
	struct block_device *part;
} FIELDS;

/* The loader writes the devices that are watched, and the place of each in times. */
struct {
	__uint(type, MAP_HASH);
	__uint(max_entries, MAX_DEVICES);
	__type(key, __u32);
	__type(value, __u32);
} bt_devices SEC(".maps");

struct {
	__uint(type, MAP_PERCPU_ARRAY);
	__uint(max_entries, MAX_DEVICES * OPERATIONS);
	__type(key, __u32);
	__type(value, struct histogram);
} bt_times SEC(".maps");

/* A request of a partition is its disk's: the loader watches either. */
INLINE __u32 *place_of(struct request *rq)
{
	__u32 dev = rq->q->disk->part0->bd_dev;
	__u32 *place = bpf_map_lookup_elem(&bt_devices, &dev);
	__u32 part;

	if (place)
		return place;
	part = rq->part->bd_dev;
	if (part == dev)
		return 0;
	return bpf_map_lookup_elem(&bt_devices, &part);
}

SEC("tp_btf/block_rq_complete")
int bt_completed(__u64 *ctx)
{
	struct request *rq = (struct request *)ctx[0];
	__u64 started = rq->start_time_ns;
	__u32 *place, at, op;
	struct histogram *h;
	__u64 now;

	if (!started)
		return 0;
	place = place_of(rq);
	if (!place)
		return 0;
	op = rq->cmd_flags & REQ_OP_MASK;
	at = *place * OPERATIONS + (op < 2 ? op : 2);
	h = bpf_map_lookup_elem(&bt_times, &at);
	if (!h)
		return 0;
	now = bpf_ktime_get_ns();
	record(h, now > started ? now - started : 0);
	return 0;
}
