// SPDX-License-Identifier: GPL-2.0 OR MIT
// The programs of package heartbeat; its comment says what they do.
#include "answer.h"
#include "beat.h"
#include "state.h"
#include "tick.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* What one heartbeat changed; reported when the lock is released. */
struct change {
	__u64 returned; /* length of the silence that ended, ns */
	__u64 restarted; /* the new incarnation, if there was another before */
	__u32 first, fresh;
};

INLINE __u64 newer(__u64 a, __u64 b)
{
	return a > b ? a : b;
}

INLINE void alive(struct slot *s, struct change *c, __u64 now)
{
	__u64 seen = newer(newer(s->last_beat, s->last_answer), s->since);

	if (s->silent) {
		s->silent = 0;
		c->returned = now - seen;
	}
}

/* renew takes a higher incarnation, whose numbers start anew. */
INLINE void renew(struct slot *s, struct hidden *h, struct change *c, __u64 incarnation)
{
	if (s->incarnation) {
		s->restarts++;
		c->restarted = incarnation;
	}
	s->incarnation = incarnation;
	s->sequence = 0;
	s->confirmed = 0;
	h->window = 0;
	h->transit_known = 0;
}

/* late counts a beat that is not newer than the newest. */
INLINE void late(struct slot *s, struct hidden *h, __u64 sequence)
{
	__u64 by = s->sequence - sequence;

	if (by >= WINDOW) {
		s->replayed++;
	} else if (h->window >> by & 1) {
		s->duplicates++;
	} else {
		h->window |= 1ULL << by;
		s->reordered++;
	}
}

/* RFC 3550, A.8 */
INLINE void measure_jitter(struct slot *s, struct hidden *h, __u64 now, __u64 sent)
{
	__s64 transit = now - sent, d = transit - h->transit;

	if (h->transit_known)
		s->jitter += (d < 0 ? -d : d) - ((s->jitter + 8) >> 4);
	h->transit = transit;
	h->transit_known = 1;
}

INLINE void advance(struct slot *s, struct hidden *h, __u64 sequence)
{
	__u64 by = sequence - s->sequence;

	if (s->sequence)
		s->gaps += by - 1;
	h->window = by < WINDOW ? h->window << by | 1 : 1;
	s->sequence = sequence;
}

INLINE void take_beat(struct slot *s, struct hidden *h, const struct beat *m, const struct packet *p, __u64 now,
		      struct change *c)
{
	__u64 incarnation = be64(m->incarnation), sequence = be64(m->sequence);

	if (incarnation < s->incarnation) {
		s->replayed++;
		return;
	}
	if (incarnation > s->incarnation)
		renew(s, h, c, incarnation);
	if (sequence <= s->sequence) {
		late(s, h, sequence);
		return;
	}
	alive(s, c, now);
	advance(s, h, sequence);
	measure_jitter(s, h, now, be64(m->sent));
	if (!s->first_seen) {
		s->first_seen = now;
		c->first = 1;
	}
	s->last_beat = now;
	s->source[0] = p->source[0];
	s->source[1] = p->source[1];
	s->source[2] = p->source[2];
	s->source[3] = p->source[3];
	s->daemon = newer(s->daemon, now);
	s->beats++;
	c->fresh = 1;
}

/* floor of the logarithm to base 2, for 0 < v < 2^32 */
INLINE __u32 log2(__u32 v)
{
	__u32 r = 0;

	if (v >> 16)
		v >>= 16, r += 16;
	if (v >> 8)
		v >>= 8, r += 8;
	if (v >> 4)
		v >>= 4, r += 4;
	if (v >> 2)
		v >>= 2, r += 2;
	return r + (v >> 1);
}

INLINE void measure_rtt(struct slot *s, __u64 rtt)
{
	__u32 bucket = rtt >> 32 ? RTT_BUCKETS - 1 : log2(rtt);

	s->last_rtt = rtt;
	if (!s->min_rtt || rtt < s->min_rtt)
		s->min_rtt = rtt;
	s->rtt[bucket & (RTT_BUCKETS - 1)]++;
}

/* asked takes the beat that m answers out of the ring, and says when it left; 0 if there is none. */
INLINE __u64 asked(struct hidden *h, const struct beat *m)
{
	__u64 sequence = be64(m->sequence), at;
	__u32 i = sequence & (SENT_RING - 1);

	if (h->ring[i].sequence != sequence || h->ring[i].sent != be64(m->echo))
		return 0;
	at = h->ring[i].at;
	h->ring[i].at = 0;
	return at;
}

INLINE void take_answer(struct slot *s, struct hidden *h, const struct beat *m, __u64 now, struct change *c)
{
	__u64 incarnation = be64(m->incarnation), hold = be64(m->hold), left = asked(h, m), rtt = now - left, age;

	if (!left) {
		s->unsolicited++;
		return;
	}
	alive(s, c, now);
	s->last_answer = now;
	s->answers++;
	measure_rtt(s, hold < rtt ? rtt - hold : rtt);
	c->fresh = 1;
	if (incarnation > s->incarnation)
		renew(s, h, c, incarnation);
	if (incarnation < s->incarnation)
		return;
	s->confirmed = 1;
	age = be32(m->age) * 1000ULL;
	if (m->age != AGE_UNKNOWN && age < now)
		s->daemon = newer(s->daemon, now - age);
}

/* take says 1 if m was new. */
INLINE int take(struct node *n, struct slot *s, __u32 index, const struct beat *m, const struct packet *p, __u64 now)
{
	struct hidden *h = bpf_map_lookup_elem(&hb_hidden, &index);
	struct path path = { .peer = be16(m->from), .network = be16(m->network), .family = m->family };
	struct change c = {};

	if (!h)
		return 0;
	bpf_spin_lock(&h->lock);
	if (same(&s->path, &path)) {
		begin(s);
		if (m->kind == BEAT)
			take_beat(s, h, m, p, now, &c);
		else
			take_answer(s, h, m, now, &c);
		end(s);
	}
	bpf_spin_unlock(&h->lock);
	if (c.first)
		report(n, now, FIRST_SEEN, &path, be64(m->incarnation));
	if (c.returned)
		report(n, now, RETURNED, &path, c.returned);
	if (c.restarted)
		report(n, now, RESTARTED, &path, c.restarted);
	return c.fresh;
}

INLINE void forged(struct node *n, const struct beat *m, __u64 now)
{
	struct path path = { .peer = be16(m->from), .network = be16(m->network), .family = m->family };
	__u64 last = *(volatile __u64 *)&n->forged_event;
	__u32 index;
	struct slot *s = slot_of(m, path.peer, &index);

	count(&n->forged);
	if (s)
		count(&s->forged);
	if ((!last || now - last > FORGED_EVENT) && __sync_val_compare_and_swap(&n->forged_event, last, now) == last)
		report(n, now, FORGED, &path, n->forged);
}

SEC("tcx/ingress") int hb_ingress(struct __sk_buff *skb)
{
	struct node *n = the_node();
	struct settings *set;
	const struct key *k;
	struct packet p;
	struct slot *s;
	struct beat m;
	__u32 index;
	__u64 now;

	if (!n || skb->pkt_type != PACKET_HOST || find(skb, &p))
		return TCX_NEXT;
	now = bpf_ktime_get_ns();
	set = the_settings(n);
	if (!set || load(skb, &p, &m) || be16(m.to) != set->number || !(k = key_of(set, &m))) {
		count(&n->foreign);
		return TCX_NEXT;
	}
	if (tag_of(&m, k) != m.tag) {
		forged(n, &m, now);
		return TCX_DROP;
	}
	if (!content_allowed(&m)) {
		count(&n->malformed);
		return TCX_DROP;
	}
	if (!placed_right(&m, &p, skb->ifindex)) {
		count(&n->misplaced);
		return TCX_DROP;
	}
	s = slot_of(&m, be16(m.from), &index);
	if (!s) {
		count(&n->unknown);
		return TCX_NEXT;
	}
	if (load_source(skb, &p) || !take(n, s, index, &m, &p, now))
		return TCX_DROP;
	if (set->flags & DELIVER)
		return TCX_NEXT;
	return m.kind == BEAT ? answer(skb, &p, &m, n, set, k, now) : TCX_DROP;
}

/* send stamps a beat of our daemon, and says 1 if it is new. */
INLINE int send(struct slot *s, __u32 index, const struct beat *m, __u64 now)
{
	struct hidden *h = bpf_map_lookup_elem(&hb_hidden, &index);
	struct path path = { .peer = be16(m->to), .network = be16(m->network), .family = m->family };
	__u64 incarnation = be64(m->incarnation), sequence = be64(m->sequence);
	__u32 i = sequence & (SENT_RING - 1);
	int fresh = 0;

	if (!h)
		return 0;
	bpf_spin_lock(&h->lock);
	if (same(&s->path, &path) && (incarnation != h->sent_incarnation || sequence > h->sent_sequence)) {
		h->sent_incarnation = incarnation;
		h->sent_sequence = sequence;
		h->ring[i].sequence = sequence;
		h->ring[i].sent = be64(m->sent);
		h->ring[i].at = now;
		begin(s);
		s->last_sent = now;
		s->sent++;
		end(s);
		fresh = 1;
	}
	bpf_spin_unlock(&h->lock);
	return fresh;
}

INLINE int ours(const struct beat *m, const struct settings *set)
{
	return m->kind == BEAT && be16(m->from) == set->number && be64(m->incarnation) == set->incarnation;
}

SEC("tcx/egress") int hb_egress(struct __sk_buff *skb)
{
	struct node *n = the_node();
	struct settings *set;
	const struct key *k;
	struct packet p;
	struct slot *s;
	struct beat m;
	__u32 index;
	__u64 now;

	if (!n || find(skb, &p) || load(skb, &p, &m))
		return TCX_NEXT;
	now = bpf_ktime_get_ns();
	set = the_settings(n);
	if (!set || !ours(&m, set) || !(k = key_of(set, &m)) || tag_of(&m, k) != m.tag)
		return TCX_NEXT;
	if (!content_allowed(&m) || !placed_right(&m, &p, skb->ifindex))
		return TCX_NEXT;
	s = slot_of(&m, be16(m.to), &index);
	if (s && send(s, index, &m, now))
		n->daemon = now;
	return TCX_NEXT;
}
