/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/* The timer: stamps a tick that came late, and reports the paths that fell silent. */
#pragma once
#include "state.h"

struct tick {
	struct node *node;
	__u64 now, silent, late;
};

INLINE __u64 silence(const struct slot *s, const struct tick *t)
{
	__u64 seen = s->since;

	if (seen < s->last_beat)
		seen = s->last_beat;
	if (seen < s->last_answer)
		seen = s->last_answer;
	if (seen < t->late)
		seen = t->late;
	return t->now > seen ? t->now - seen : 0;
}

static long check(__u32 i, struct tick *t)
{
	struct slot *s = bpf_map_lookup_elem(&hb_slots, &i);
	struct hidden *h = bpf_map_lookup_elem(&hb_hidden, &i);
	struct path path = {};
	__u64 since = 0;

	if (!s || !h || !s->path.peer)
		return 0;
	bpf_spin_lock(&h->lock);
	if (s->path.peer && !s->silent && silence(s, t) > t->silent) {
		begin(s);
		s->silent = 1;
		end(s);
		since = silence(s, t);
		path = s->path;
	}
	bpf_spin_unlock(&h->lock);
	if (since)
		report(t->node, t->now, SILENT, &path, since);
	return 0;
}

INLINE void stamp_tick(struct node *n, __u64 now, __u64 period)
{
	__u64 late = n->last_tick && now - n->last_tick > period ? now - n->last_tick - period : 0;

	n->last_tick = now;
	n->ticks++;
	if (late > n->max_late)
		n->max_late = late;
	if (late <= period)
		return;
	n->late_tick = now;
	n->late_ticks++;
	report(n, now, LATE_TICK, 0, late);
}

static int tick(void *map, __u32 *key, struct tick_timer *t)
{
	struct node *n = the_node();
	struct settings *set = n ? the_settings(n) : 0;
	struct tick at = { .node = n, .now = bpf_ktime_get_ns() };
	__u32 slots_used;

	if (!set)
		return 0;
	stamp_tick(n, at.now, set->tick);
	at.silent = set->silent;
	at.late = n->late_tick;
	slots_used = n->slots;
	bpf_loop(slots_used < MAX_PATHS ? slots_used : MAX_PATHS, check, &at, 0);
	bpf_timer_start(&t->timer, set->tick, 0);
	return 0;
}

/* start is run by the loader, and starts the timer, or takes over one that runs. */
SEC("syscall") int hb_start(void *context)
{
	__u32 zero = 0;
	struct tick_timer *t = bpf_map_lookup_elem(&hb_timers, &zero);
	long err;

	if (!t)
		return -1;
	err = bpf_timer_init(&t->timer, &hb_timers, CLOCK_MONOTONIC);
	if (err && err != -EBUSY)
		return err;
	bpf_timer_set_callback(&t->timer, tick);
	return bpf_timer_start(&t->timer, 0, 0);
}

/* stop is run by the loader, and by tests that let the kernel stand still. */
SEC("syscall") int hb_stop(void *context)
{
	__u32 zero = 0;
	struct tick_timer *t = bpf_map_lookup_elem(&hb_timers, &zero);

	return t && bpf_timer_cancel(&t->timer) >= 0 ? 0 : -1;
}
