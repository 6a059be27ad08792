// SPDX-License-Identifier: GPL-2.0 OR MIT
// The round trip times of connections to this node's portals, smoothed by TCP, as of each segment that came in.
#include "kernel.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

enum { MAX_CONNECTIONS = 4096, MAX_PORTS = 16, IPV4 = 2, IPV6 = 10 };

struct ns_common {
	__u32 inum;
} FIELDS;
struct net {
	struct ns_common ns;
} FIELDS;
typedef struct {
	struct net *net;
} FIELDS possible_net_t;
struct in6_addr {
	union {
		__u32 u6_addr32[4];
	} in6_u;
} FIELDS;
struct sock_common {
	__u32 skc_daddr;
	__u16 skc_dport, skc_num, skc_family;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
} FIELDS;
struct sock {
	struct sock_common __sk_common;
} FIELDS;
struct tcp_sock {
	__u32 srtt_us; /* 8 times */
} FIELDS;

/* Written by the loader. */
struct tcp_settings {
	__u32 netns, ports;
	__u16 port[MAX_PORTS];
};

struct {
	__uint(type, MAP_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tcp_settings);
} tt_settings SEC(".maps");

/* The peer of a connection; IPv4 as ::ffff:a.b.c.d, the port as in the packet. */
struct peer {
	__u32 address[4];
	__u16 port, local;
};

struct {
	__uint(type, MAP_LRU_PERCPU_HASH);
	__uint(max_entries, MAX_CONNECTIONS);
	__type(key, struct peer);
	__type(value, struct histogram);
} tt_times SEC(".maps");

static const struct histogram tt_none;

INLINE int ours(const struct sock_common *c)
{
	const struct tcp_settings *s;
	__u16 port = c->skc_num;
	__u32 zero = 0;

	s = bpf_map_lookup_elem(&tt_settings, &zero);
	if (!s)
		return 0;
#pragma unroll
	for (int i = 0; i < MAX_PORTS; i++)
		if (i < s->ports && s->port[i] == port)
			return c->skc_net.net->ns.inum == s->netns;
	return 0;
}

INLINE void name(const struct sock_common *c, struct peer *p)
{
	if (c->skc_family == IPV6) {
#pragma unroll
		for (int i = 0; i < 4; i++)
			p->address[i] = c->skc_v6_daddr.in6_u.u6_addr32[i];
	} else {
		p->address[0] = p->address[1] = 0;
		p->address[2] = __builtin_bswap32(0xffff);
		p->address[3] = c->skc_daddr;
	}
	p->port = c->skc_dport;
	p->local = c->skc_num;
}

SEC("tp_btf/tcp_probe")
int tt_received(__u64 *ctx)
{
	struct sock *sk = (struct sock *)ctx[0];
	struct histogram *h;
	struct peer p;
	__u32 srtt;

	if (!ours(&sk->__sk_common))
		return 0;
	if (bpf_probe_read_kernel(&srtt, sizeof(srtt), &((struct tcp_sock *)sk)->srtt_us) || !srtt)
		return 0;
	name(&sk->__sk_common, &p);
	h = bpf_map_lookup_elem(&tt_times, &p);
	if (!h) {
		bpf_map_update_elem(&tt_times, &p, &tt_none, NOEXIST);
		h = bpf_map_lookup_elem(&tt_times, &p);
		if (!h)
			return 0;
	}
	record(h, (__u64)srtt * 125); /* eighths of a microsecond */
	return 0;
}
