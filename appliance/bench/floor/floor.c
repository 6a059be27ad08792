/*
 * floor: the least that an iSCSI target can do for a command, as a lower bound of its CPU time.
 *
 *   floor pread|ring|null FILE PORT
 *
 * One thread; of each connection one command at a time. pread: one connection, three system calls per command, recv,
 * pread or pwrite, and send. ring: up to 64 connections; receives and disk I/O by one io_uring, answers by send, one
 * io_uring_enter for all that is to be done and one before it for disk I/O that is alone, as lunard does it. null: as
 * pread, without the disk. No checks, no time limits, no task management, no error that does not end the process: it is
 * no target for anybody's data. It says just enough for appliance/bench/client to log in.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef IORING_SETUP_NO_SQARRAY /* Linux 6.6 */
#define IORING_SETUP_NO_SQARRAY (1U << 16)
#endif

enum {
	HEADER = 48,
	SECTOR = 512,
	PAGE = 4096,
	MOST = 256 << 10, /* of data per command */
	CONNECTIONS = 64,
	ENTRIES = 256,
	DISK = 0x100, /* in user_data, beside the number of the connection */
	ACCEPT = 0x200,

	OP_NOP = 0x00,
	OP_COMMAND = 0x01,
	OP_LOGIN = 0x03,
	OP_DATA_IN = 0x05,
	OP_LOGOUT = 0x06,
	TO_INITIATOR = 0x20,

	READ_16 = 0x88,
	WRITE_16 = 0x8a,
	READ_CAPACITY_16 = 0x9e
};

static const char keys[] = "HeaderDigest=None\0DataDigest=None\0InitialR2T=Yes\0ImmediateData=Yes\0"
			   "MaxRecvDataSegmentLength=262144\0MaxBurstLength=262144\0FirstBurstLength=262144\0"
			   "MaxOutstandingR2T=1\0MaxConnections=1\0ErrorRecoveryLevel=0\0TargetPortalGroupTag=1";

struct connection {
	int sock;
	uint32_t stat_sn;
	size_t have;
	uint8_t *page; /* the header lies before it, so that data received with it is aligned */
};

enum mode { PREAD, RING, NONE };

static enum mode mode;
static int file;
static off_t size;
static struct connection connections[CONNECTIONS];

static _Noreturn void die(const char *what)
{
	fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint32_t get32(const uint8_t *p)
{
	uint32_t v;
	memcpy(&v, p, sizeof(v));
	return be32toh(v);
}

static uint64_t get64(const uint8_t *p) { return (uint64_t)get32(p) << 32 | get32(p + 4); }

static void put32(uint8_t *p, uint32_t v)
{
	v = htobe32(v);
	memcpy(p, &v, sizeof(v));
}

static uint32_t data_length(const uint8_t *h) { return get32(h + 4) & 0xffffff; }

static uint8_t *header(const struct connection *c) { return c->page - HEADER; }

/* whole tells whether a PDU is there. What the client sends is never behind another PDU. */
static bool whole(const struct connection *c)
{
	return c->have >= HEADER && c->have >= HEADER + ((data_length(header(c)) + 3) & ~3u);
}

static void transmit(struct connection *c, uint32_t length)
{
	size_t n = HEADER + ((length + 3) & ~3u);
	if (send(c->sock, header(c), n, MSG_NOSIGNAL) != (ssize_t)n)
		die("send");
	c->have = 0;
}

static void sequence(struct connection *c, uint8_t *h, uint32_t expected)
{
	put32(h + 24, c->stat_sn++);
	put32(h + 28, expected);
	put32(h + 32, expected + 63);
	memset(h + 36, 0, 12);
}

static void answer(struct connection *c, uint8_t opcode, uint8_t flags, uint32_t ttt, uint32_t length)
{
	uint8_t *h = header(c);
	uint32_t expected = get32(h + 24) + !(h[0] & 0x40);
	memset(h, 0, 16);
	h[0] = TO_INITIATOR | opcode;
	h[1] = flags;
	put32(h + 4, length);
	put32(h + 20, ttt);
	sequence(c, h, expected);
	transmit(c, length);
}

static void login(struct connection *c)
{
	uint8_t *h = header(c);
	uint32_t length = 0;
	if ((h[1] & 0x0c) == 0x04) {
		length = sizeof(keys);
		memset(c->page + length, 0, 4);
		memcpy(c->page, keys, length);
	}
	h[0] = TO_INITIATOR | OP_LOGIN;
	h[2] = h[3] = 0;
	put32(h + 4, length);
	h[15] = 1; /* TSIH */
	put32(h + 20, 0);
	sequence(c, h, get32(h + 24));
	transmit(c, length);
}

static void response(struct connection *c) { answer(c, OP_COMMAND, 0x80, 0, 0); }

/* data_in is the last Data-In, with the status GOOD in it. */
static void data_in(struct connection *c, uint32_t length) { answer(c, OP_DATA_IN, 0x81, 0xffffffff, length); }

static void capacity(struct connection *c)
{
	memset(c->page, 0, 32);
	put32(c->page, (uint32_t)((uint64_t)(size / SECTOR - 1) >> 32));
	put32(c->page + 4, (uint32_t)(size / SECTOR - 1));
	put32(c->page + 8, SECTOR);
	data_in(c, 32);
}

static const uint8_t *cdb(const struct connection *c) { return header(c) + 32; }
static bool writes(const struct connection *c) { return cdb(c)[0] == WRITE_16; }
static off_t offset(const struct connection *c) { return (off_t)get64(cdb(c) + 2) * SECTOR; }
static size_t length(const struct connection *c) { return (size_t)get32(cdb(c) + 10) * SECTOR; }

static void moved(struct connection *c, ssize_t n)
{
	if (n != (ssize_t)length(c))
		die("disk I/O");
	if (writes(c))
		response(c);
	else
		data_in(c, (uint32_t)n);
}

static void submit_disk(struct connection *c);

static void move(struct connection *c)
{
	if (length(c) > MOST)
		die("a command of more than 256 KiB");
	if (mode == RING)
		submit_disk(c);
	else if (mode == NONE)
		moved(c, (ssize_t)length(c));
	else if (writes(c))
		moved(c, pwrite(file, c->page, length(c), offset(c)));
	else
		moved(c, pread(file, c->page, length(c), offset(c)));
}

static void command(struct connection *c)
{
	switch (cdb(c)[0]) {
	case READ_16:
	case WRITE_16:
		move(c);
		break;
	case READ_CAPACITY_16:
		capacity(c);
		break;
	default:
		response(c);
	}
}

static void handle(struct connection *c)
{
	const uint8_t *h = header(c);
	switch (h[0] & 0x3f) {
	case OP_COMMAND:
		command(c);
		break;
	case OP_LOGIN:
		login(c);
		break;
	case OP_LOGOUT:
		answer(c, OP_LOGOUT, 0x80, 0, 0);
		break;
	case OP_NOP:
		if (get32(h + 16) != 0xffffffff)
			answer(c, OP_NOP, 0x80, 0xffffffff, 0);
		else
			c->have = 0;
		break;
	default:
		die("an opcode that is not expected");
	}
}

static void adopt(struct connection *c, int sock)
{
	int on = 1;
	setsockopt(sock, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	c->sock = sock;
	c->stat_sn = 1;
	c->have = 0;
}

static void serve(struct connection *c)
{
	ssize_t n;
	while ((n = recv(c->sock, header(c) + c->have, HEADER + MOST - c->have, 0)) > 0) {
		c->have += (size_t)n;
		if (whole(c))
			handle(c);
	}
	close(c->sock);
}

static struct {
	int fd;
	unsigned built, fresh, under_way; /* fresh: disk I/O among what is built */
	unsigned *sq_tail, sq_mask, *cq_head, *cq_tail, cq_mask;
	struct io_uring_sqe *sqes;
	struct io_uring_cqe *cqes;
} ring;

static void open_ring(void)
{
	struct io_uring_params p = {.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_NO_SQARRAY};
	const int prot = PROT_READ | PROT_WRITE, flags = MAP_SHARED | MAP_POPULATE;
	struct iovec all[CONNECTIONS];
	ring.fd = (int)syscall(SYS_io_uring_setup, ENTRIES, &p);
	if (ring.fd < 0)
		die("io_uring_setup");
	size_t most = p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe);
	uint8_t *m = mmap(NULL, most, prot, flags, ring.fd, IORING_OFF_SQ_RING);
	ring.sqes = mmap(NULL, p.sq_entries * sizeof(*ring.sqes), prot, flags, ring.fd, IORING_OFF_SQES);
	if (m == MAP_FAILED || (void *)ring.sqes == MAP_FAILED)
		die("mmap");
	ring.sq_tail = (unsigned *)(m + p.sq_off.tail);
	ring.cq_head = (unsigned *)(m + p.cq_off.head);
	ring.cq_tail = (unsigned *)(m + p.cq_off.tail);
	ring.cqes = (struct io_uring_cqe *)(m + p.cq_off.cqes);
	ring.sq_mask = p.sq_entries - 1;
	ring.cq_mask = p.cq_entries - 1;
	for (int i = 0; i < CONNECTIONS; i++)
		all[i] = (struct iovec){connections[i].page, MOST};
	if (syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_BUFFERS, all, CONNECTIONS) != 0 ||
	    syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_FILES, &file, 1) != 0)
		die("io_uring_register");
}

/* build is the next entry; no more than two per connection are ever built before an enter. */
static struct io_uring_sqe *build(uint8_t opcode, int fd, const void *p, size_t n, uint64_t tag)
{
	struct io_uring_sqe *e = &ring.sqes[(*ring.sq_tail + ring.built++) & ring.sq_mask];
	memset(e, 0, sizeof(*e));
	e->opcode = opcode;
	e->fd = fd;
	e->addr = (uint64_t)(uintptr_t)p;
	e->len = (uint32_t)n;
	e->user_data = tag;
	return e;
}

static uint64_t number(const struct connection *c) { return (uint64_t)(c - connections); }

static void submit_disk(struct connection *c)
{
	uint8_t op = writes(c) ? IORING_OP_WRITE_FIXED : IORING_OP_READ_FIXED;
	struct io_uring_sqe *e = build(op, 0, c->page, length(c), number(c) | DISK);
	ring.fresh++;
	ring.under_way++;
	e->flags = IOSQE_FIXED_FILE;
	e->off = (uint64_t)offset(c);
	e->buf_index = (uint16_t)number(c);
}

static void submit_recv(struct connection *c)
{
	struct io_uring_sqe *e = build(IORING_OP_RECV, c->sock, header(c) + c->have, HEADER + MOST - c->have, number(c));
	e->ioprio = IORING_RECVSEND_POLL_FIRST;
}

static void submit_accept(int listener) { build(IORING_OP_ACCEPT, listener, NULL, 0, ACCEPT); }

static void accepted(int listener, int sock)
{
	struct connection *c = connections;
	while (c->sock != 0)
		if (++c == connections + CONNECTIONS)
			die("too many connections");
	if (sock < 0)
		die("accept");
	adopt(c, sock);
	submit_recv(c);
	submit_accept(listener);
}

static void received(struct connection *c, int n)
{
	if (n <= 0) {
		close(c->sock);
		c->sock = 0;
		return;
	}
	c->have += (size_t)n;
	bool waits = whole(c) && (header(c)[0] & 0x3f) == OP_COMMAND && (cdb(c)[0] == READ_16 || writes(c));
	if (whole(c))
		handle(c);
	if (!waits)
		submit_recv(c);
}

static void complete(int listener, const struct io_uring_cqe *e)
{
	struct connection *c = &connections[e->user_data & (CONNECTIONS - 1)];
	if (e->user_data & ACCEPT) {
		accepted(listener, e->res);
	} else if (e->user_data & DISK) {
		ring.under_way--;
		moved(c, e->res);
		submit_recv(c);
	} else {
		received(c, e->res);
	}
}

static void enter(unsigned wait, unsigned flags)
{
	unsigned n = ring.built;
	ring.built = ring.fresh = 0;
	__atomic_store_n(ring.sq_tail, *ring.sq_tail + n, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, ring.fd, n, wait, flags, NULL, 0) < 0 && errno != EINTR)
		die("io_uring_enter");
}

static void turn(int listener)
{
	open_ring();
	submit_accept(listener);
	for (;;) {
		if (ring.fresh == 1 && ring.under_way == 1)
			enter(0, 0);
		enter(1, IORING_ENTER_GETEVENTS);
		unsigned head = *ring.cq_head;
		for (; head != __atomic_load_n(ring.cq_tail, __ATOMIC_ACQUIRE); head++)
			complete(listener, &ring.cqes[head & ring.cq_mask]);
		__atomic_store_n(ring.cq_head, head, __ATOMIC_RELEASE);
	}
}

static void make_room(void)
{
	const size_t each = PAGE + MOST;
	uint8_t *all = mmap(NULL, each * CONNECTIONS, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (all == MAP_FAILED)
		die("mmap");
	for (size_t i = 0; i < CONNECTIONS; i++)
		connections[i].page = all + i * each + PAGE;
}

static int listen_on(int port)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
	int on = 1, s = socket(AF_INET, SOCK_STREAM, 0);
	a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (s < 0 || bind(s, (struct sockaddr *)&a, sizeof(a)) != 0 || listen(s, 8) != 0)
		die("listen");
	return s;
}

static enum mode parse(const char *name)
{
	if (strcmp(name, "pread") == 0)
		return PREAD;
	if (strcmp(name, "ring") == 0)
		return RING;
	if (strcmp(name, "null") == 0)
		return NONE;
	errno = EINVAL;
	die(name);
}

int main(int argc, char **argv)
{
	if (argc != 4) {
		fprintf(stderr, "usage: floor pread|ring|null FILE PORT\n");
		return 2;
	}
	mode = parse(argv[1]);
	file = open(argv[2], O_RDWR | O_DIRECT);
	if (file < 0)
		die(argv[2]);
	size = lseek(file, 0, SEEK_END);
	make_room();
	int listener = listen_on(atoi(argv[3]));
	if (mode == RING)
		turn(listener);
	for (int sock; (sock = accept(listener, NULL, NULL)) >= 0;) {
		adopt(connections, sock);
		serve(connections);
	}
	die("accept");
}
