/* Reads frames.txt from standard input and checks that each message gets its class, as a
 * device written in C would. SPEC.md sections 3, 4.10 and 5.7 in a hundred lines: no memory is
 * allocated, every length is checked before it is used.
 *
 *   cc -std=c99 -o frames frames.c && ./frames < frames.txt */

#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { HEADER = 9, MAX_MESSAGE = 196608, MAX_FIELDS = 200, SMALL = 512 };
enum result { OK, SKIP, MALFORMED, HEAD, CRITICAL };

/* Bodies by type: 1 2 4 8 = u8 u16 u32 u64, s = str8, l = str16 or bin16, n = 32 bytes,
 * u = 16 bytes, f = fields, p = targets, t = TLVs, r = rest. */
static const struct { const char *layout; uint32_t max; } types[] = {
	{0, 0},
	{"1s1sl42888lt", 20480}, /* HELLO */
	{"1u428882t", SMALL},    /* ACCEPT */
	{"1sslll4f", 65536},     /* REQUEST */
	{"12f", 65536},          /* RESPONSE */
	{"888sr", 32768 + SMALL}, /* NOTIFY */
	{"r", 16384},            /* DATA */
	{"r", 16384},            /* DATA_END */
	{"f", 65536},            /* TRAILERS */
	{"4", SMALL},            /* RESET */
	{"4", SMALL},            /* WINDOW */
	{"4", SMALL},            /* PING */
	{"4", SMALL},            /* PONG */
	{"88", SMALL},           /* NOTIFY_ACK */
	{"2444ss", SMALL},       /* GOAWAY */
	{"n8s1t", SMALL},        /* CHALLENGE */
	{"r", 16384},            /* DESCRIBE */
	{"r", SMALL},            /* LOCATE */
	{"881p", 4096},          /* INVALIDATE */
	{"88", SMALL},           /* INVALIDATED */
};
enum { HELLO = 1, REQUEST = 3, RESPONSE = 4, LOCATE = 17, TYPES = sizeof types / sizeof types[0] };

struct cursor { const uint8_t *p, *end; int bad; };
struct text { const uint8_t *p; uint32_t n; };

static uint32_t num(struct cursor *c, int size) {
	uint32_t v = 0;
	if (c->end - c->p < size) { c->bad = 1; c->p = c->end; return 0; }
	while (size-- > 0) v = v << 8 | *c->p++;
	return v;
}

static struct text take(struct cursor *c, uint32_t n) {
	struct text t = {c->p, n};
	if ((uint32_t)(c->end - c->p) < n) { c->bad = 1; c->p = c->end; t.n = 0; }
	else c->p += n;
	return t;
}

static int token_char(int ch) {
	return (ch >= '0' && ch <= '9') || (ch >= 'a' && ch <= 'z') || (ch >= 'A' && ch <= 'Z') || (ch != 0 && strchr("!#$%&'*+-.^_`|~", ch) != NULL);
}

static int token(struct text t) {
	for (uint32_t i = 0; i < t.n; i++) if (!token_char(t.p[i])) return 0;
	return t.n > 0;
}

static int visible(struct text t) {
	for (uint32_t i = 0; i < t.n; i++) if (t.p[i] <= ' ' || t.p[i] == 0x7f) return 0;
	return 1;
}

static int field_name(struct text t) { /* canonical case, and none of the names that never travel */
	static const char *const hop[] = {"Connection", "Keep-Alive", "Proxy-Connection", "Transfer-Encoding", "Proxy-Authenticate", "Proxy-Authorization", "Host"};
	int upper = 1;
	for (uint32_t i = 0; i < t.n; i++) {
		int ch = t.p[i];
		if ((upper && ch >= 'a' && ch <= 'z') || (!upper && ch >= 'A' && ch <= 'Z')) return 0;
		upper = ch == '-';
	}
	for (size_t i = 0; i < sizeof hop / sizeof hop[0]; i++) if (strlen(hop[i]) == t.n && memcmp(hop[i], t.p, t.n) == 0) return 0;
	return token(t);
}

static int field_value(struct text t) {
	for (uint32_t i = 0; i < t.n; i++) if ((t.p[i] < ' ' && t.p[i] != '\t') || t.p[i] == 0x7f) return 0;
	return t.n == 0 || (t.p[0] != ' ' && t.p[0] != '\t' && t.p[t.n - 1] != ' ' && t.p[t.n - 1] != '\t');
}

static int plain(struct text t) { /* UTF-8 without spaces and control characters */
	static const uint32_t least[] = {0, 0x80, 0x800, 0x10000};
	for (uint32_t i = 0; i < t.n;) {
		uint32_t v = t.p[i++], more = v < 0x80 ? 0 : v < 0xe0 ? 1 : v < 0xf0 ? 2 : 3;
		if ((v >= 0x80 && v < 0xc2) || v > 0xf4 || more > t.n - i) return 0;
		if (more > 0) v &= 0x3fu >> more;
		for (uint32_t n = more; n > 0; n--, i++) {
			if ((t.p[i] & 0xc0) != 0x80) return 0;
			v = v << 6 | (t.p[i] & 0x3f);
		}
		if (v < least[more] || v > 0x10ffff || (v >= 0xd800 && v <= 0xdfff) || v <= ' ' || (v >= 0x7f && v <= 0x9f)) return 0;
	}
	return 1;
}

static int lan_url(struct text t) { /* nothing, or http or https with a host and without a user */
	uint32_t i = t.n >= 8 && memcmp(t.p, "https://", 8) == 0 ? 8 : t.n >= 7 && memcmp(t.p, "http://", 7) == 0 ? 7 : 0, host = i;
	if (t.n == 0) return 1;
	if (i == 0 || i == t.n || t.p[i] == ':') return 0;
	for (; i < t.n && t.p[i] != '/' && t.p[i] != '?' && t.p[i] != '#'; i++) if (t.p[i] == '@') return 0;
	return i > host && plain(t);
}

static enum result fields(struct cursor *c) {
	uint32_t n = num(c, 2);
	if (!c->bad && n > MAX_FIELDS) return HEAD;
	for (; n > 0 && !c->bad; n--) {
		struct text name = take(c, num(c, 1)), value = take(c, num(c, 2));
		if (!c->bad && (!field_name(name) || !field_value(value))) return HEAD;
	}
	return OK;
}

static void targets(struct cursor *c) { /* paths with their queries */
	for (uint32_t n = num(c, 2); n > 0 && !c->bad; n--) {
		struct text t = take(c, num(c, 2));
		if (t.n == 0 || t.p[0] != '/' || !visible(t)) c->bad = 1;
	}
}

static int chain(struct text t) { /* one or more certificates, none of them empty */
	struct cursor c = {t.p, t.p + t.n, 0};
	while (c.p < c.end && !c.bad) if (take(&c, num(&c, 2)).n == 0) return 0;
	return t.n > 0 && t.n <= 4096 && !c.bad;
}

static enum result body(int type, const uint8_t *p, uint32_t n) {
	struct cursor c = {p, p + n, 0};
	struct text texts[3] = {{0, 0}, {0, 0}, {0, 0}}; /* the last three str16: path, authority, client; or signature, info */
	struct text method = {0, 0}, rest = {0, 0};
	uint32_t two = 0, flags = n > 0 ? p[0] : 0;
	enum result r = OK;
	for (const char *k = types[type].layout; *k && r == OK; k++) {
		switch (*k) {
		case '1': num(&c, 1); break;
		case '2': two = num(&c, 2); break;
		case '4': num(&c, 4); break;
		case '8': take(&c, 8); break;
		case 'u': take(&c, 16); break;
		case 'n': take(&c, 32); break;
		case 's': method = take(&c, num(&c, 1)); break;
		case 'l': texts[0] = texts[1]; texts[1] = texts[2]; texts[2] = take(&c, num(&c, 2)); break;
		case 'r': rest = take(&c, (uint32_t)(c.end - c.p)); break;
		case 'f': r = fields(&c); break;
		case 'p': targets(&c); break;
		case 't':
			while (c.p < c.end && !c.bad) {
				uint32_t tlv = num(&c, 1), len = num(&c, 2);
				struct text v = take(&c, len);
				if (type == HELLO && ((tlv == 1 && (len < 1 || len > SMALL)) || (tlv == 2 && len != 8) || (tlv == 3 && !chain(v)) || (tlv == 4 && len != 4))) c.bad = 1;
			}
			break;
		}
	}
	if (c.bad) return MALFORMED;
	if (r != OK) return r;
	if (c.p < c.end) return MALFORMED;
	if (type == HELLO && (texts[1].n > SMALL || texts[2].n > 16384)) return MALFORMED;
	if (type == LOCATE && !lan_url(rest)) return MALFORMED;
	if (type == REQUEST) {
		struct text path = texts[0];
		int star = path.n == 1 && path.p[0] == '*', slash = path.n > 0 && path.p[0] == '/';
		if (!token(method) || (!star && !slash) || !visible(path) || !visible(texts[1]) || !visible(texts[2])) return HEAD;
	}
	if (type == RESPONSE && (two < 100 || two > 999 || ((flags & 1) && two < 200))) return HEAD;
	return OK;
}

static enum result message(const uint8_t *p, size_t n) {
	enum result last = OK;
	while (n > 0) {
		if (n < HEADER) return MALFORMED;
		int type = p[0], known = type > 0 && type < TYPES;
		struct cursor c = {p + 1, p + HEADER, 0};
		uint32_t length = num(&c, 4), stream = num(&c, 4);
		uint32_t max = known ? types[type].max : MAX_MESSAGE - HEADER;
		if (length < 4 || length - 4 > max || length > n - 5 || stream > 0x7fffffff) return MALFORMED;
		if (type >= 128) return CRITICAL;
		last = known ? body(type, p + HEADER, length - 4) : SKIP;
		if (last != OK && last != SKIP) return last;
		p += 5 + length;
		n -= 5 + length;
	}
	return last;
}

int main(void) {
	static char line[4096], class[16], name[256], hex[4096];
	static uint8_t msg[2048];
	int count = 0, wrong = 0;
	while (fgets(line, sizeof line, stdin)) {
		static const char *const classes[] = {"ok", "skip", "malformed", "head", "critical"};
		size_t n = 0;
		unsigned byte;
		if (line[0] == '#' || sscanf(line, "%15s %255s %4095s", class, name, hex) != 3) continue;
		while (n < sizeof msg && sscanf(hex + 2 * n, "%2x", &byte) == 1) msg[n++] = (uint8_t)byte;
		const char *want = strcmp(class, "read") == 0 ? "ok" : class, *got = classes[message(msg, n)];
		count++;
		if (strcmp(got, want) != 0) {
			wrong++;
			printf("%s: %s, want %s\n", name, got, class);
		}
	}
	printf("%d messages, %d wrong\n", count, wrong);
	return count == 0 || wrong > 0;
}
