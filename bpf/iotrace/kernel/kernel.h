/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * What the programs use of the kernel's interface to BPF programs, which never changes, and the fields that they read,
 * which the loader finds in this kernel's type information.
 */
#pragma once

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
#define FIELDS __attribute__((preserve_access_index))
#define __uint(name, value) int(*name)[value]
#define __type(name, value) typeof(value) *name

enum { MAP_HASH = 1, MAP_ARRAY = 2, MAP_PERCPU_ARRAY = 6, MAP_LRU_PERCPU_HASH = 10 };
enum { ANY = 0, NOEXIST = 1 };

static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*bpf_map_update_elem)(void *map, const void *key, const void *value, __u64 flags) = (void *)2;
static __u64 (*bpf_ktime_get_ns)(void) = (void *)5;
static long (*bpf_probe_read_kernel)(void *to, __u32 size, const void *from) = (void *)113;
struct bpf_pidns_info {
	__u32 pid, tgid;
};
static long (*bpf_get_ns_current_pid_tgid)(__u64 dev, __u64 ino, struct bpf_pidns_info *info, __u32 size) = (void *)120;

/* Class 0 has those below 1,024 ns, class i those of 2^(i+9) up to 2^(i+10) ns, the last one also all above. */
enum { BUCKETS = 28, FIRST_LOG = 10 };

struct histogram {
	__u64 sum;
	__u64 buckets[BUCKETS];
};

INLINE __u32 log2(__u64 v)
{
	__u32 r = 0;

	if (v >> 32)
		r += 32, v >>= 32;
	if (v >> 16)
		r += 16, v >>= 16;
	if (v >> 8)
		r += 8, v >>= 8;
	if (v >> 4)
		r += 4, v >>= 4;
	if (v >> 2)
		r += 2, v >>= 2;
	return r + (v >> 1);
}

/* Each CPU has a histogram of its own, so nothing is locked; a program that interrupts another on it may lose one count. */
INLINE void record(struct histogram *h, __u64 ns)
{
	__u32 i = log2(ns | 1) + 1;

	i = i > FIRST_LOG ? i - FIRST_LOG : 0;
	if (i >= BUCKETS)
		i = BUCKETS - 1;
	h->sum += ns;
	h->buckets[i]++;
}
