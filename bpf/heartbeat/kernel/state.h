/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/* What the programs keep, and share with the loader. Go's names and bounds stand in ../heartbeat.go and ../stamp.go. */
#pragma once
#include "kernel.h"

enum {
	MAX_PATHS = 512,
	MAX_INTERFACES = 64,
	MAX_KEYS = 2,
	RTT_BUCKETS = 32,
	SENT_RING = 32,		/* beats that may be unanswered at a time, for each path */
	WINDOW = 64,		/* sequence numbers by which a beat may be late and still be told from a replay */
	EVENT_RING = 1 << 16,	/* bytes */
	FORGED_EVENT = 1000000000, /* ns between two events of forged beats */
};

enum { DELIVER = 1 };

struct key {
	__u64 k0, k1;
	__u32 cluster, pad;
};

/* One of the two settings is active: the loader writes the other, then turns. */
struct settings {
	__u32 number, flags;
	__u64 incarnation, tick, silent;
	struct key keys[MAX_KEYS];
	__u32 key_count, pad;
};

/* Of the node. Read by the loader word by word, so each is right, but they are not of one moment. */
struct node {
	__u64 daemon;
	__u64 last_tick, late_tick, max_late, ticks, late_ticks;
	__u64 answered, forged, foreign, malformed, misplaced, unknown, lost_events;
	__u64 forged_event;
	__u32 active; /* index into settings, written by the loader */
	__u32 slots;  /* bound of the slots in use, written by the loader */
};

struct path {
	__u16 peer, network;
	__u8 family, pad[3];
} __attribute__((aligned(8)));

/* Of a path. Written under the lock of its hidden part; version is odd meanwhile. Times in ns of CLOCK_MONOTONIC. */
struct slot {
	__u64 version;
	struct path path; /* peer 0: free */
	__u64 since;	  /* since when the path is watched, written by the loader */
	__u64 incarnation, sequence;
	__u64 first_seen, last_beat, last_answer, daemon, last_sent;
	__u64 beats, answers, sent;
	__u64 gaps, reordered, duplicates, replayed, unsolicited, forged, restarts;
	__u64 jitter; /* 16 times */
	__u64 last_rtt, min_rtt;
	__u32 confirmed, silent;
	__u32 rtt[RTT_BUCKETS];
	__u32 source[4]; /* from where last_beat came, as in the packet; IPv4 in the first */
};

/* Of a path too, but not for the loader: a map with a lock cannot be mapped into memory. */
struct hidden {
	struct bpf_spin_lock lock;
	__u32 transit_known;
	__s64 transit;
	__u64 window; /* bit i: sequence-i has come */
	__u64 sent_incarnation, sent_sequence;
	struct {
		__u64 sequence, sent, at;
	} ring[SENT_RING];
};

/* The loader decodes it by hand: decodeEvent. */
enum event_kind { FIRST_SEEN = 1, RETURNED, SILENT, RESTARTED, FORGED, LATE_TICK };

struct event {
	__u64 at;
	__u32 kind, pad;
	struct path path;
	__u64 value;
};

struct tick_timer {
	struct bpf_timer timer;
};

#define ARRAY(name_, value_, count_, flags_)       \
	struct {                                   \
		__uint(type, MAP_ARRAY);           \
		__uint(max_entries, count_);       \
		__uint(map_flags, flags_);         \
		__type(key, __u32);                \
		__type(value, value_);             \
	} name_ SEC(".maps")

ARRAY(hb_settings, struct settings, 2, 0);
ARRAY(hb_node, struct node, 1, MMAPABLE);
ARRAY(hb_slots, struct slot, MAX_PATHS, MMAPABLE);
ARRAY(hb_hidden, struct hidden, MAX_PATHS, 0);
ARRAY(hb_timers, struct tick_timer, 1, 0);

struct {
	__uint(type, MAP_HASH);
	__uint(max_entries, MAX_PATHS);
	__type(key, struct path);
	__type(value, __u32);
} hb_paths SEC(".maps");

/* ifindex → network */
struct {
	__uint(type, MAP_HASH);
	__uint(max_entries, MAX_INTERFACES);
	__type(key, __u32);
	__type(value, __u32);
} hb_interfaces SEC(".maps");

struct {
	__uint(type, MAP_RINGBUF);
	__uint(max_entries, EVENT_RING);
} hb_events SEC(".maps");

INLINE int same(const struct path *a, const struct path *b)
{
	return *(const __u64 *)a == *(const __u64 *)b;
}

INLINE struct node *the_node(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&hb_node, &zero);
}

INLINE struct settings *the_settings(struct node *n)
{
	__u32 active = *(volatile __u32 *)&n->active & 1;

	return bpf_map_lookup_elem(&hb_settings, &active);
}

INLINE void count(__u64 *counter)
{
	__sync_fetch_and_add(counter, 1);
}

INLINE void report(struct node *n, __u64 at, __u32 kind, const struct path *path, __u64 value)
{
	struct event e = { .at = at, .kind = kind, .value = value };

	if (path)
		e.path = *path;
	if (bpf_ringbuf_output(&hb_events, &e, sizeof(e), 0))
		count(&n->lost_events);
}

/* An exchange is a full barrier on every machine: no store of the change is seen before begin or after end. */
INLINE void begin(struct slot *s)
{
	__sync_lock_test_and_set(&s->version, s->version + 1);
}

INLINE void end(struct slot *s)
{
	__sync_lock_test_and_set(&s->version, s->version + 1);
}
