/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/* The wire format of a heartbeat, as netft/beat documents it, and where it lies in a packet. */
#pragma once
#include "state.h"

enum { PORT = 3343, MAGIC = 0x4c4e4842, VERSION = 1, BEAT = 1, ANSWER = 2, FROM_KERNEL = 1, IPV4 = 4, IPV6 = 6 };
enum { MAC_HEADER = 14, IPV4_HEADER = 20, IPV6_HEADER = 40, UDP_HEADER = 8 };
#define AGE_UNKNOWN 0xffffffffU

/* Big-endian, but for the tag. */
struct beat {
	__u32 magic;
	__u8 version, kind;
	__u16 flags;
	__u32 cluster;
	__u16 from, to, network;
	__u8 family, reserved;
	__u32 age;
	__u64 incarnation, sequence, sent, echo, hold;
	__u64 tag;
};

struct packet {
	__u32 udp; /* offset of the UDP header */
	__u32 family;
	__u32 source[4];
};

#define ROTATE(x, b) (((x) << (b)) | ((x) >> (64 - (b))))

struct sip {
	__u64 a, b, c, d;
};

INLINE void sip_round(struct sip *v)
{
	v->a += v->b, v->b = ROTATE(v->b, 13), v->b ^= v->a, v->a = ROTATE(v->a, 32);
	v->c += v->d, v->d = ROTATE(v->d, 16), v->d ^= v->c;
	v->a += v->d, v->d = ROTATE(v->d, 21), v->d ^= v->a;
	v->c += v->b, v->b = ROTATE(v->b, 17), v->b ^= v->c, v->c = ROTATE(v->c, 32);
}

INLINE void sip_word(struct sip *v, __u64 word)
{
	v->d ^= word;
	sip_round(v);
	sip_round(v);
	v->a ^= word;
}

/* SipHash-2-4 of the 64 bytes before the tag. */
INLINE __u64 tag_of(const struct beat *m, const struct key *k)
{
	const __u64 *words = (const __u64 *)m;
	struct sip v = { 0x736f6d6570736575ULL ^ k->k0, 0x646f72616e646f6dULL ^ k->k1,
			 0x6c7967656e657261ULL ^ k->k0, 0x7465646279746573ULL ^ k->k1 };

#pragma unroll
	for (int i = 0; i < 8; i++)
		sip_word(&v, words[i]);
	sip_word(&v, 64ULL << 56);
	v.c ^= 0xff;
	for (int i = 0; i < 4; i++)
		sip_round(&v);
	return v.a ^ v.b ^ v.c ^ v.d;
}

/* find says 0 if the packet is UDP to our port, without IPv4 options, IPv6 extension headers, fragments or a VLAN tag. */
INLINE int find(struct __sk_buff *skb, struct packet *p)
{
	__u8 ip[IPV4_HEADER];
	__u16 port;

	if (skb->vlan_present || bpf_skb_load_bytes(skb, MAC_HEADER, ip, sizeof(ip)))
		return -1;
	if (skb->protocol == be16(ETH_IPV4)) {
		if (ip[0] != 0x45 || ip[9] != UDP || (ip[6] & 0x3f) || ip[7])
			return -1;
		p->family = IPV4;
		p->udp = MAC_HEADER + IPV4_HEADER;
	} else if (skb->protocol == be16(ETH_IPV6)) {
		if (ip[6] != UDP)
			return -1;
		p->family = IPV6;
		p->udp = MAC_HEADER + IPV6_HEADER;
	} else {
		return -1;
	}
	return bpf_skb_load_bytes(skb, p->udp + 2, &port, 2) || port != be16(PORT);
}

/* load_source says 0 if it got the sender's address, which only answers and stamps need. */
INLINE int load_source(struct __sk_buff *skb, struct packet *p)
{
	__builtin_memset(p->source, 0, sizeof(p->source));
	if (p->family == IPV4)
		return bpf_skb_load_bytes(skb, MAC_HEADER + 12, p->source, 4);
	return bpf_skb_load_bytes(skb, MAC_HEADER + 8, p->source, 16);
}

/* load says 0 if the payload has the shape of a heartbeat. */
INLINE int load(struct __sk_buff *skb, const struct packet *p, struct beat *m)
{
	__u16 len;

	if (bpf_skb_load_bytes(skb, p->udp + 4, &len, 2) || len != be16(UDP_HEADER + sizeof(*m)))
		return -1;
	if (bpf_skb_load_bytes(skb, p->udp + UDP_HEADER, m, sizeof(*m)))
		return -1;
	return m->magic != be32(MAGIC) || m->version != VERSION;
}

INLINE const struct key *key_of(const struct settings *set, const struct beat *m)
{
	__u32 cluster = be32(m->cluster);

	if (set->key_count > 0 && set->keys[0].cluster == cluster)
		return &set->keys[0];
	if (set->key_count > 1 && set->keys[1].cluster == cluster)
		return &set->keys[1];
	return 0;
}

INLINE int content_allowed(const struct beat *m)
{
	__u16 flags = m->kind == ANSWER ? be16(FROM_KERNEL) : 0;

	return (m->kind == BEAT || m->kind == ANSWER) && !(m->flags & ~flags) && !m->reserved &&
	       (m->family == IPV4 || m->family == IPV6) && m->from && m->to && m->from != m->to &&
	       m->incarnation && m->sequence;
}

INLINE int placed_right(const struct beat *m, const struct packet *p, __u32 ifindex)
{
	__u32 *network = bpf_map_lookup_elem(&hb_interfaces, &ifindex);

	return network && *network == be16(m->network) && m->family == p->family;
}

/* slot_of finds where the path is kept; peer is in host order. */
INLINE struct slot *slot_of(const struct beat *m, __u16 peer, __u32 *index)
{
	struct path path = { .peer = peer, .network = be16(m->network), .family = m->family };
	__u32 *found = bpf_map_lookup_elem(&hb_paths, &path);

	if (!found)
		return 0;
	*index = *found;
	return bpf_map_lookup_elem(&hb_slots, index);
}
