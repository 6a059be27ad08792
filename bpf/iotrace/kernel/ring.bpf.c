// SPDX-License-Identifier: GPL-2.0 OR MIT
// How long io_uring has the requests of one process, from their submission to their completion, per operation. It costs
// more than the others, and is for as long as somebody looks.
#include "kernel.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

enum { OPERATIONS = 3, SLOTS = 1 << 13, SLOT_SHIFT = 8 };
enum { FSYNC = 3, READ_FIXED = 4, WRITE_FIXED = 5, READ = 22, WRITE = 23 };

struct io_kiocb {
	__u8 opcode;
} FIELDS;

/* Written by the loader: a process, in the pid namespace that dev and ino name. */
struct ring_settings {
	__u64 dev, ino;
	__u32 tgid, pad;
};

struct {
	__uint(type, MAP_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ring_settings);
} rt_settings SEC(".maps");

/* A request under way, in the place that its address gives it: a later one there takes it over. */
struct started {
	__u64 request, at;
	__u32 operation, pad;
};

struct {
	__uint(type, MAP_ARRAY);
	__uint(max_entries, SLOTS);
	__type(key, __u32);
	__type(value, struct started);
} rt_started SEC(".maps");

struct {
	__uint(type, MAP_PERCPU_ARRAY);
	__uint(max_entries, OPERATIONS);
	__type(key, __u32);
	__type(value, struct histogram);
} rt_times SEC(".maps");

INLINE struct started *slot(__u64 request)
{
	__u32 at = (request >> SLOT_SHIFT) & (SLOTS - 1);

	return bpf_map_lookup_elem(&rt_started, &at);
}

INLINE int ours(void)
{
	const struct ring_settings *s;
	struct bpf_pidns_info info;
	__u32 zero = 0;

	s = bpf_map_lookup_elem(&rt_settings, &zero);
	if (!s || bpf_get_ns_current_pid_tgid(s->dev, s->ino, &info, sizeof(info)))
		return 0;
	return info.tgid == s->tgid;
}

INLINE int operation_of(__u8 opcode)
{
	switch (opcode) {
	case READ:
	case READ_FIXED:
		return 0;
	case WRITE:
	case WRITE_FIXED:
		return 1;
	case FSYNC:
		return 2;
	}
	return -1;
}

SEC("tp_btf/io_uring_submit_req")
int rt_submitted(__u64 *ctx)
{
	struct io_kiocb *request = (struct io_kiocb *)ctx[0];
	int operation = operation_of(request->opcode);
	struct started *s;

	if (operation < 0 || !ours())
		return 0;
	s = slot((__u64)request);
	if (!s)
		return 0;
	s->request = (__u64)request;
	s->operation = operation;
	s->at = bpf_ktime_get_ns();
	return 0;
}

SEC("tp_btf/io_uring_complete")
int rt_completed(__u64 *ctx)
{
	__u64 request = ctx[1];
	struct started *s = slot(request);
	struct histogram *h;
	__u32 at;

	if (!s || !request || s->request != request)
		return 0;
	s->request = 0;
	at = s->operation;
	h = bpf_map_lookup_elem(&rt_times, &at);
	if (h)
		record(h, bpf_ktime_get_ns() - s->at);
	return 0;
}
