/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/* The kernel's answer: the beat turned round, in the packet that brought it. */
#pragma once
#include "beat.h"

INLINE __u32 daemon_age(const struct node *n, __u64 now)
{
	__u64 beat = *(volatile __u64 *)&n->daemon, age;

	if (!beat)
		return AGE_UNKNOWN;
	age = now > beat ? (now - beat) / 1000 : 0;
	return age < AGE_UNKNOWN ? be32(age) : AGE_UNKNOWN;
}

/* swap exchanges two neighbours of size bytes; the checksums do not change by it. */
#define SWAP(skb, offset, size)                                                      \
	({                                                                           \
		__u8 _a[2 * (size)], _b[2 * (size)];                                 \
		long _e = bpf_skb_load_bytes(skb, offset, _a, sizeof(_a));           \
		__builtin_memcpy(_b, _a + (size), size);                             \
		__builtin_memcpy(_b + (size), _a, size);                             \
		_e ? _e : bpf_skb_store_bytes(skb, offset, _b, sizeof(_b), 0);       \
	})

INLINE long turn_round(struct __sk_buff *skb, const struct packet *p)
{
	if (SWAP(skb, 0, 6) || SWAP(skb, p->udp, 2))
		return -1;
	if (p->family == IPV4)
		return SWAP(skb, MAC_HEADER + 12, 4);
	return SWAP(skb, MAC_HEADER + 8, 16);
}

INLINE void fill_answer(struct beat *r, const struct beat *m, const struct node *n, const struct settings *set, __u64 now)
{
	__u64 sent = bpf_ktime_get_ns();

	*r = *m;
	r->kind = ANSWER;
	r->flags = be16(FROM_KERNEL);
	r->from = m->to;
	r->to = m->from;
	r->age = daemon_age(n, now);
	r->incarnation = be64(set->incarnation);
	r->sent = be64(sent);
	r->echo = m->sent;
	r->hold = be64(sent - now);
}

/* The checksum of a packet that left a checksum to the hardware is left to it again: the kernel knows. */
INLINE int answer(struct __sk_buff *skb, const struct packet *p, struct beat *m, struct node *n,
		  const struct settings *set, const struct key *k, __u64 now)
{
	struct beat r;
	__s64 diff;

	fill_answer(&r, m, n, set, now);
	r.tag = tag_of(&r, k);
	diff = bpf_csum_diff((__u32 *)m, sizeof(*m), (__u32 *)&r, sizeof(r), 0);
	if (diff < 0 || turn_round(skb, p) || bpf_skb_store_bytes(skb, p->udp + UDP_HEADER, &r, sizeof(r), 0) ||
	    bpf_l4_csum_replace(skb, p->udp + 6, 0, diff, MARK_MANGLED_0))
		return TCX_DROP;
	count(&n->answered);
	return bpf_redirect(skb->ifindex, 0);
}
