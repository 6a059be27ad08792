/*
 * client: loads one iSCSI LUN asynchronously through libiscsi and prints what it saw as JSON.
 *
 *   client URL[,URL...] read|write|hold random|sequential BLOCK_BYTES QUEUE_DEPTH CONNECTIONS SECONDS [LUNS]
 *
 * Each connection keeps QUEUE_DEPTH commands under way until the time is over (SECONDS 0: until
 * each connection has gone once over its share of the LUN, which fills it), from one thread. Sequential
 * connections each walk a share of their own. Latency runs from the command's submission to its
 * callback and is kept in a histogram of 1.6 % resolution. With LUNS there are so many LUNs of equal size
 * from that of each URL on: one connection takes one by chance for each command, several have one each, in
 * turn, as they have the URLs. "hold" prints "ready" when all connections are
 * logged in, and answers pings for SECONDS. Any error ends the run with status 1.
 */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include <iscsi/iscsi.h>
#include <iscsi/scsi-lowlevel.h>

enum {
	SECTOR = 512,
	MAX_CONNECTIONS = 1024,
	SUB_BITS = 6, /* 64 linear steps per power of two */
	BUCKETS = 64 << SUB_BITS,
	WARM_UP_MS = 300,
	IDLE_MS = 10000 /* no answer for so long is a hang */
};

struct load {
	bool write, random, hold;
	int luns;
	uint32_t block;
	int depth, connections;
	double seconds;
};

struct connection {
	struct iscsi_context *iscsi;
	int lun;
	uint64_t first, blocks, next; /* its share of the LUN, in units of load.block */
	uint64_t state;               /* of the random numbers */
	int under_way;
};

struct slot { /* one command under way */
	struct connection *conn;
	uint64_t submitted;
	unsigned char *data;
};

static struct load load;
static uint64_t histogram[BUCKETS];
static uint64_t completed; /* all of them */
static uint64_t finished;  /* those that count: after the warm-up, in time */
static uint64_t measured_from, stop_at;

static void die(const char *what, const char *why)
{
	fprintf(stderr, "client: %s: %s\n", what, why);
	exit(1);
}

static uint64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static unsigned bucket_of(uint64_t ns)
{
	if (ns < (1u << SUB_BITS))
		return (unsigned)ns;
	unsigned shift = 63 - SUB_BITS - (unsigned)__builtin_clzll(ns);
	return ((shift + 1) << SUB_BITS) + (unsigned)((ns >> shift) & ((1u << SUB_BITS) - 1));
}

static uint64_t bucket_low(unsigned bucket)
{
	unsigned power = bucket >> SUB_BITS, step = bucket & ((1u << SUB_BITS) - 1);
	return power == 0 ? step : (uint64_t)((1u << SUB_BITS) + step) << (power - 1);
}

static double percentile_us(double share)
{
	uint64_t seen = 0, want = (uint64_t)(share * (double)finished);
	for (unsigned b = 0; b < BUCKETS; b++) {
		seen += histogram[b];
		if (seen > want)
			return (double)bucket_low(b) / 1000.0;
	}
	return 0;
}

static uint64_t chance(struct connection *c)
{
	c->state ^= c->state << 13; /* xorshift64 */
	c->state ^= c->state >> 7;
	c->state ^= c->state << 17;
	return c->state;
}

static uint64_t next_block(struct connection *c)
{
	return c->first + (load.random ? chance(c) : c->next++) % c->blocks;
}

static int next_lun(struct connection *c)
{
	return load.connections == 1 ? c->lun + (int)(chance(c) % (unsigned)load.luns) : c->lun;
}

static bool over(const struct connection *c, uint64_t now)
{
	return load.seconds == 0 ? c->next >= c->blocks : now >= stop_at;
}

static void submit(struct slot *s, uint64_t now);

static void done(struct iscsi_context *iscsi, int status, void *command, void *private_data)
{
	struct slot *s = private_data;
	uint64_t now = now_ns();
	if (status != SCSI_STATUS_GOOD)
		die("command", iscsi_get_error(iscsi));
	scsi_free_scsi_task(command);
	s->conn->under_way--;
	completed++;
	if (s->submitted >= measured_from && now <= stop_at) {
		histogram[bucket_of(now - s->submitted)]++;
		finished++;
	}
	if (!over(s->conn, now))
		submit(s, now);
}

static void submit(struct slot *s, uint64_t now)
{
	struct connection *c = s->conn;
	uint64_t lba = next_block(c) * (load.block / SECTOR);
	int lun = next_lun(c);
	struct scsi_task *task;
	s->submitted = now;
	if (load.write) {
		memcpy(s->data, &lba, sizeof(lba)); /* no two blocks alike */
		task = iscsi_write16_task(c->iscsi, lun, lba, s->data, load.block, SECTOR,
					  0, 0, 0, 0, 0, done, s);
	} else {
		task = iscsi_read16_task(c->iscsi, lun, lba, load.block, SECTOR,
					 0, 0, 0, 0, 0, done, s);
		if (task != NULL)
			scsi_task_add_data_in_buffer(task, (int)load.block, s->data);
	}
	if (task == NULL)
		die("submit", iscsi_get_error(c->iscsi));
	c->under_way++;
}

static uint64_t lun_bytes(struct connection *c)
{
	struct scsi_task *task = iscsi_readcapacity16_sync(c->iscsi, c->lun);
	if (task == NULL || task->status != SCSI_STATUS_GOOD)
		die("READ CAPACITY(16)", iscsi_get_error(c->iscsi));
	struct scsi_readcapacity16 *capacity = scsi_datain_unmarshall(task);
	if (capacity == NULL)
		die("READ CAPACITY(16)", "answer cannot be read");
	uint64_t bytes = (capacity->returned_lba + 1) * capacity->block_length;
	scsi_free_scsi_task(task);
	return bytes;
}

/* nth_url copies the URL that a connection takes. */
static void nth_url(char *to, size_t size, const char *urls, int number)
{
	int count = 1;
	for (const char *p = urls; *p != 0; p++)
		count += *p == ',';
	for (int i = number % count; i > 0; i--)
		urls = strchr(urls, ',') + 1;
	snprintf(to, size, "%.*s", (int)strcspn(urls, ","), urls);
}

static void connect_to(struct connection *c, const char *urls, int number)
{
	char name[64], url[512];
	nth_url(url, sizeof(url), urls, number);
	snprintf(name, sizeof(name), "iqn.2026-01.lunar.test:client-%d", number);
	c->iscsi = iscsi_create_context(name);
	if (c->iscsi == NULL)
		die("context", "out of memory");
	struct iscsi_url *parsed = iscsi_parse_full_url(c->iscsi, url);
	if (parsed == NULL)
		die("URL", iscsi_get_error(c->iscsi));
	iscsi_set_targetname(c->iscsi, parsed->target);
	iscsi_set_session_type(c->iscsi, ISCSI_SESSION_NORMAL);
	iscsi_set_header_digest(c->iscsi, ISCSI_HEADER_DIGEST_NONE);
	iscsi_set_noautoreconnect(c->iscsi, 1);
	c->lun = parsed->lun + number % load.luns;
	if (iscsi_full_connect_sync(c->iscsi, parsed->portal, c->lun) != 0)
		die("connect", iscsi_get_error(c->iscsi));
	for (int i = 1; load.connections == 1 && i < load.luns; i++) /* takes the unit attention */
		scsi_free_scsi_task(iscsi_testunitready_sync(c->iscsi, c->lun + i));
	c->state = 0x9E3779B97F4A7C15u * (uint64_t)(number + 1);
	iscsi_destroy_url(parsed);
}

static void share_out(struct connection *conns)
{
	uint64_t total = lun_bytes(&conns[0]) / load.block;
	uint64_t share = load.random ? total : total / (uint64_t)load.connections;
	if (share == 0)
		die("LUN", "too small");
	for (int i = 0; i < load.connections; i++) {
		conns[i].first = load.random ? 0 : share * (uint64_t)i;
		conns[i].blocks = share;
	}
}

static void start(struct connection *conns)
{
	uint64_t now = now_ns();
	measured_from = now + (load.seconds > 0 ? (uint64_t)WARM_UP_MS * 1000000u : 0);
	stop_at = load.seconds > 0 ? measured_from + (uint64_t)(load.seconds * 1e9) : UINT64_MAX;
	for (int i = 0; i < load.connections * load.depth; i++) {
		struct slot *s = calloc(1, sizeof(*s));
		if (s == NULL || posix_memalign((void **)&s->data, 4096, load.block) != 0)
			die("buffer", "out of memory");
		memset(s->data, 0xA5, load.block);
		s->conn = &conns[i % load.connections];
		if (!over(s->conn, now))
			submit(s, now);
	}
}

static int watch(const struct connection *conns, struct pollfd *fds)
{
	int under_way = 0;
	for (int i = 0; i < load.connections; i++) {
		fds[i].fd = iscsi_get_fd(conns[i].iscsi);
		fds[i].events = (short)iscsi_which_events(conns[i].iscsi);
		under_way += conns[i].under_way;
	}
	return under_way;
}

static void run(struct connection *conns)
{
	static struct pollfd fds[MAX_CONNECTIONS];
	while (watch(conns, fds) > 0) {
		int ready = poll(fds, (nfds_t)load.connections, IDLE_MS);
		if (ready < 0 && errno != EINTR)
			die("poll", strerror(errno));
		if (ready == 0)
			die("poll", "no answer for ten seconds");
		for (int i = 0; i < load.connections; i++)
			if (fds[i].revents != 0 && iscsi_service(conns[i].iscsi, fds[i].revents) != 0)
				die("connection", iscsi_get_error(conns[i].iscsi));
	}
}

/* hold keeps the sessions until the time is over. */
static void hold(struct connection *conns)
{
	static struct pollfd fds[MAX_CONNECTIONS];
	stop_at = now_ns() + (uint64_t)(load.seconds * 1e9);
	puts("ready");
	fflush(stdout);
	while (now_ns() < stop_at) {
		watch(conns, fds);
		if (poll(fds, (nfds_t)load.connections, 200) < 0 && errno != EINTR)
			die("poll", strerror(errno));
		for (int i = 0; i < load.connections; i++)
			if (fds[i].revents != 0 && iscsi_service(conns[i].iscsi, fds[i].revents) != 0)
				die("connection", iscsi_get_error(conns[i].iscsi));
	}
}

static double cpu_seconds(void)
{
	struct rusage u;
	getrusage(RUSAGE_SELF, &u);
	return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
	       (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static void report(double elapsed)
{
	printf("{\"completed\":%" PRIu64 ",\"seconds\":%.3f,\"iops\":%.1f,\"p50us\":%.1f,\"p99us\":%.1f,"
	       "\"clientCPU\":%.3f}\n", completed, elapsed, (double)finished / elapsed,
	       percentile_us(0.50), percentile_us(0.99), cpu_seconds());
}

static void parse(int argc, char **argv)
{
	load.luns = argc > 8 ? atoi(argv[8]) : 1;
	load.hold = strcmp(argv[2], "hold") == 0;
	load.write = strcmp(argv[2], "write") == 0;
	load.random = strcmp(argv[3], "random") == 0;
	load.block = (uint32_t)strtoul(argv[4], NULL, 10);
	load.depth = atoi(argv[5]);
	load.connections = atoi(argv[6]);
	load.seconds = atof(argv[7]);
	if (load.block == 0 || load.block % SECTOR != 0 || load.depth < 1 ||
	    load.connections < 1 || load.connections > MAX_CONNECTIONS || load.seconds < 0 || load.luns < 1)
		die("arguments", "out of range");
}

int main(int argc, char **argv)
{
	static struct connection conns[MAX_CONNECTIONS];
	if (argc != 8 && argc != 9) {
		fprintf(stderr, "usage: client URL[,URL...] read|write|hold random|sequential BLOCK_BYTES "
				"QUEUE_DEPTH CONNECTIONS SECONDS [LUNS]\n");
		return 2;
	}
	parse(argc, argv);
	for (int i = 0; i < load.connections; i++)
		connect_to(&conns[i], argv[1], i);
	if (load.hold) {
		hold(conns);
		return 0;
	}
	share_out(conns);
	start(conns);
	uint64_t from = now_ns();
	run(conns);
	report(load.seconds > 0 ? load.seconds : (double)(now_ns() - from) / 1e9);
	for (int i = 0; i < load.connections; i++) {
		iscsi_logout_sync(conns[i].iscsi);
		iscsi_destroy_context(conns[i].iscsi);
	}
	return 0;
}
