/* The upstream and the caller of benchmarks: one epoll loop each, so that neither is what is measured.
 *
 *   load upstream PORT PLAIN EVENTS PAUSE   answers with the file PLAIN, or with the events of the file EVENTS, PAUSE us
 *                                           apart, where the request says "stream":true; "-" is no file
 *   load calls PORT REQUEST CONNECTIONS TOTAL RATE
 *                                           sends the file REQUEST TOTAL times, RATE a second (0: as soon as a
 *                                           connection is free), and prints one line of JSON
 *
 * MARK in a request becomes its number; in an event, the number of the request it answers, its own number and when it
 * was sent. The caller checks each that arrives: its request's, and one after the other. 127.0.0.1 alone.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define MARK "ID00000000.000000@000000000000000"
#define MARK_SIZE ((int)sizeof MARK - 1)
#define NAME_SIZE 10 /* of a mark's "ID" and request number */
#define MOST_EVENTS 20000
#define SECONDS_AT_MOST 300
#define PIECE 65536

typedef struct { char *bytes; int size; int mark; } Text;

static int64_t now(void) { /* microseconds */
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000LL + t.tv_nsec / 1000;
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static Text text(char *bytes, int size) {
    char *mark = memmem(bytes, size, MARK, MARK_SIZE);
    return (Text){bytes, size, mark ? (int)(mark - bytes) : -1};
}

static Text file(const char *path) {
    if (!strcmp(path, "-")) return (Text){"", 0, -1};
    FILE *opened = fopen(path, "rb");
    if (!opened) fail(path);
    fseek(opened, 0, SEEK_END);
    int size = ftell(opened);
    rewind(opened);
    char *bytes = malloc(size + 1);
    if (fread(bytes, 1, size, opened) != (size_t)size) fail(path);
    bytes[size] = 0;
    fclose(opened);
    return text(bytes, size);
}

static int loop, timer;

static void watch(int fd, void *what, int events, int how) {
    struct epoll_event event = {.events = events, .data.ptr = what};
    if (epoll_ctl(loop, how, fd, &event)) fail("epoll_ctl");
}

static void wake_at(int64_t at) {
    if (at < 1) at = 1;
    struct itimerspec when = {.it_value = {at / 1000000, at % 1000000 * 1000}};
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL);
}

static void begin_loop(void) {
    signal(SIGPIPE, SIG_IGN);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    loop = epoll_create1(0);
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    watch(timer, &timer, EPOLLIN, EPOLL_CTL_ADD);
}

static int is_timer(void *what) {
    uint64_t times;
    return what == &timer && read(timer, &times, sizeof times) != -2;
}

static void set_up(int fd) {
    int one = 1;
    fcntl(fd, F_SETFL, O_NONBLOCK);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

static struct sockaddr_in address(int port) {
    return (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
}

/* ---- the upstream ---- */

typedef struct Asker {
    int fd, size, sent, event, marked; /* event: the next to be sent */
    int64_t due;
    char name[NAME_SIZE];
    char *unsent;
    struct Asker *next;
    char arrived[32768];
} Asker;

static Text answer, events[MOST_EVENTS];
static int event_count, pause_us;
static Asker *first, **last = &first; /* streams, the one that is due first at the front */

static void drop(Asker *asker) { /* one of a stream goes with its next event */
    if (asker->fd >= 0) close(asker->fd);
    asker->fd = -1;
    if (asker->due) return;
    free(asker->unsent);
    free(asker);
}

static void flush_unsent(Asker *asker) {
    int sent = send(asker->fd, asker->unsent, asker->sent, 0);
    if (sent < 0 && errno != EAGAIN) return;
    if (sent > 0) memmove(asker->unsent, asker->unsent + sent, asker->sent -= sent);
    watch(asker->fd, asker, asker->sent ? EPOLLIN | EPOLLOUT : EPOLLIN, EPOLL_CTL_MOD);
}

static void push(Asker *asker, const char *bytes, int size) {
    int sent = asker->sent ? 0 : send(asker->fd, bytes, size, 0);
    if (sent < 0) sent = 0;
    if (sent == size) return;
    asker->unsent = realloc(asker->unsent, asker->sent + size - sent);
    memcpy(asker->unsent + asker->sent, bytes + sent, size - sent);
    asker->sent += size - sent;
    flush_unsent(asker);
}

static void push_event(Asker *asker) {
    static char bytes[PIECE * 4];
    Text *event = &events[asker->event++];
    int size = sprintf(bytes, "%x\r\n", event->size);
    char *body = bytes + size;
    memcpy(body, event->bytes, event->size);
    if (event->mark >= 0) {
        char mark[64];
        sprintf(mark, "%.*s.%06d@%015lld", NAME_SIZE, asker->name, asker->marked++, (long long)now());
        memcpy(body + event->mark, mark, MARK_SIZE);
    }
    size += event->size;
    size += sprintf(bytes + size, "\r\n");
    if (asker->event == event_count) size += sprintf(bytes + size, "0\r\n\r\n");
    push(asker, bytes, size);
}

static void queue(Asker *asker) {
    asker->next = NULL;
    *last = asker;
    last = &asker->next;
    if (first == asker) wake_at(asker->due);
}

static void push_due(void) {
    while (first && first->due <= now()) {
        Asker *asker = first;
        first = asker->next;
        if (!first) last = &first;
        if (asker->fd >= 0) push_event(asker);
        if (asker->fd >= 0 && asker->event < event_count) {
            asker->due += pause_us;
            queue(asker);
        } else {
            asker->due = 0;
            if (asker->fd < 0) drop(asker);
        }
    }
    if (first) wake_at(first->due);
}

static int answer_one(Asker *asker) { /* bytes of the request; 0: it is not whole */
    asker->arrived[asker->size] = 0;
    char *end = memmem(asker->arrived, asker->size, "\r\n\r\n", 4);
    if (!end) return 0;
    char *length = strcasestr(asker->arrived, "\r\ncontent-length:");
    int size = end + 4 - asker->arrived + (length && length < end ? atoi(length + 17) : 0);
    if (asker->size < size) return 0;
    char *mark = memmem(end, asker->arrived + size - end, "ID0", 3);
    memcpy(asker->name, mark ? mark : MARK, NAME_SIZE);
    int streams = strstr(end, "\"stream\":true") || strstr(end, "\"stream\": true") || !answer.size;
    if (!streams) {
        push(asker, answer.bytes, answer.size);
        return size;
    }
    static const char head[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    push(asker, head, sizeof head - 1);
    asker->event = asker->marked = 0;
    asker->due = now();
    if (pause_us) {
        asker->due += pause_us;
        queue(asker);
    } else {
        while (asker->event < event_count) push_event(asker);
        asker->due = 0;
    }
    return size;
}

static void hear(Asker *asker) {
    int got = recv(asker->fd, asker->arrived + asker->size, sizeof asker->arrived - 1 - asker->size, 0);
    if (got <= 0) {
        if (got == 0 || errno != EAGAIN) drop(asker);
        return;
    }
    asker->size += got;
    for (int size; (size = answer_one(asker)); asker->size -= size)
        memmove(asker->arrived, asker->arrived + size, asker->size - size);
}

static void read_events(Text all) {
    for (char *at = all.bytes, *end; (end = strstr(at, "\n\n")) && event_count < MOST_EVENTS; at = end + 2)
        events[event_count++] = text(at, end + 2 - at);
}

static void upstream(int port, char *plain, char *streamed, int pause) {
    Text body = file(plain);
    if (body.size) {
        char *whole = malloc(body.size + 200);
        int size = sprintf(whole, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", body.size);
        memcpy(whole + size, body.bytes, body.size);
        answer = (Text){whole, size + body.size, -1};
    }
    read_events(file(streamed));
    pause_us = pause;
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in at = address(port);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 4096)) fail("listen");
    fcntl(listener, F_SETFL, O_NONBLOCK);
    watch(listener, NULL, EPOLLIN, EPOLL_CTL_ADD);
    for (struct epoll_event ready[256];;) {
        int count = epoll_wait(loop, ready, 256, -1);
        for (int i = 0; i < count; i++) {
            Asker *asker = ready[i].data.ptr;
            if (asker == NULL) {
                for (int fd; (fd = accept(listener, NULL, NULL)) >= 0;) {
                    Asker *accepted = calloc(1, sizeof *accepted);
                    set_up(accepted->fd = fd);
                    watch(fd, accepted, EPOLLIN, EPOLL_CTL_ADD);
                }
            } else if (is_timer(asker)) {
                push_due();
            } else if (ready[i].events & EPOLLOUT && asker->sent) {
                flush_unsent(asker);
            } else {
                hear(asker);
            }
        }
    }
}

/* ---- the caller ---- */

typedef enum { IDLE, HEAD, SIZED, CHUNK_LINE, CHUNK, CHUNK_END, LAST_LINE } State;

typedef struct Caller {
    int fd, number, expected, again, line_size, kept; /* expected: the number of the next event */
    State state;
    long left;
    int64_t begun;
    char line[16384], carried[64];
    struct Caller *next;
} Caller;

static Text request;
static int port, total, sent_count, done_count, failed, wrong, fewest = MOST_EVENTS; /* fewest: events of an answer */
static long chunk_count, byte_count;
static int64_t *latencies, *chunk_latencies;
static long most_chunks = 4000000;
static Caller *idle;

static void connect_anew(Caller *caller) {
    struct sockaddr_in to = address(port);
    caller->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(caller->fd, (struct sockaddr *)&to, sizeof to)) fail("connect");
    set_up(caller->fd);
    watch(caller->fd, caller, EPOLLIN, EPOLL_CTL_ADD);
}

static void call(Caller *caller, int64_t due) {
    char number[16];
    if (caller->fd < 0) connect_anew(caller);
    caller->number = sent_count++;
    caller->expected = caller->line_size = caller->kept = 0;
    caller->again = -1;
    caller->state = HEAD;
    caller->begun = due;
    sprintf(number, "ID%08d", caller->number);
    if (request.mark >= 0) memcpy(request.bytes + request.mark, number, NAME_SIZE);
    if (send(caller->fd, request.bytes, request.size, 0) != request.size) fail("send");
}

static void hang_up(Caller *caller) {
    close(caller->fd);
    caller->fd = -1;
}

static void finish(Caller *caller, int is_whole) {
    latencies[done_count++] = now() - caller->begun;
    if (!is_whole) failed++;
    if (caller->expected < fewest) fewest = caller->expected;
    if (!is_whole) hang_up(caller);
    caller->state = IDLE;
    caller->next = idle;
    idle = caller;
}

static void look_for_marks(Caller *caller, char *bytes, long size) {
    static char both[PIECE * 2];
    memcpy(both, caller->carried, caller->kept);
    memcpy(both + caller->kept, bytes, size);
    size += caller->kept;
    char *at = both, *end = both + size;
    for (char *mark; end - at >= MARK_SIZE && (mark = memmem(at, end - at - MARK_SIZE + NAME_SIZE, "ID", 2)); at = mark + 2) {
        if (end - mark < MARK_SIZE) break;
        if (mark[NAME_SIZE] != '.' || mark[NAME_SIZE + 7] != '@') continue;
        int64_t sent = atoll(mark + NAME_SIZE + 8);
        if (!sent) continue; /* the question, sent back */
        int number = atoi(mark + NAME_SIZE + 1);
        if (number == 0 && caller->expected) caller->again = 0; /* the whole text at the end, once more */
        int is_right = number == (caller->again < 0 ? caller->expected++ : caller->again++);
        if (atoi(mark + 2) != caller->number || !is_right) wrong++;
        if (caller->again >= 0) continue;
        if (chunk_count < most_chunks) chunk_latencies[chunk_count] = now() - sent;
        chunk_count++;
    }
    caller->kept = end - at < MARK_SIZE - 1 ? end - at : MARK_SIZE - 1;
    memcpy(caller->carried, end - caller->kept, caller->kept);
}

static void read_head(Caller *caller) {
    char *length = strcasestr(caller->line, "\r\ncontent-length:");
    if (atoi(caller->line + 9) != 200) {
        failed++;
        if (failed == 1) fprintf(stderr, "%.300s\n", caller->line);
    }
    caller->state = length ? SIZED : CHUNK_LINE;
    caller->left = length ? atol(length + 17) : 0;
    caller->line_size = 0;
}

static int take(Caller *caller, char *bytes, long size) { /* whether the response is over */
    for (long at = 0; at < size;) {
        if (caller->state == SIZED || caller->state == CHUNK) {
            long piece = size - at < caller->left ? size - at : caller->left;
            if (request.mark >= 0) look_for_marks(caller, bytes + at, piece);
            byte_count += piece;
            at += piece;
            caller->left -= piece;
            if (!caller->left && caller->state == SIZED) return 1;
            if (!caller->left) caller->state = CHUNK_END;
            continue;
        }
        if (caller->line_size == sizeof caller->line - 1) fail("a line without end");
        caller->line[caller->line_size++] = bytes[at++];
        caller->line[caller->line_size] = 0;
        if (caller->line[caller->line_size - 1] != '\n') continue;
        if (caller->state == HEAD) {
            if (caller->line_size > 4 && !strcmp(caller->line + caller->line_size - 4, "\r\n\r\n")) read_head(caller);
            if (caller->state == SIZED && !caller->left) return 1;
            continue;
        }
        caller->line_size = 0;
        if (caller->state == LAST_LINE) return 1;
        if (caller->state == CHUNK_LINE) {
            caller->left = strtol(caller->line, NULL, 16);
            caller->state = caller->left ? CHUNK : LAST_LINE;
        } else {
            caller->state = CHUNK_LINE;
        }
    }
    return 0;
}

static int hear_answer(Caller *caller) { /* whether it is over */
    static char bytes[PIECE];
    long got = recv(caller->fd, bytes, sizeof bytes, 0);
    if (got < 0 && errno == EAGAIN) return 0;
    if (caller->state == IDLE) { /* a server may end a kept connection, and may say nothing unasked */
        if (got > 0) wrong++;
        hang_up(caller);
        return 0;
    }
    int is_over = got > 0 && take(caller, bytes, got);
    if (is_over || got <= 0) finish(caller, is_over);
    return is_over || got <= 0;
}

static int by_size(const void *a, const void *b) {
    int64_t difference = *(int64_t *)a - *(int64_t *)b;
    return difference < 0 ? -1 : difference > 0;
}

static void print_results(int64_t begun) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    long kept = chunk_count < most_chunks ? chunk_count : most_chunks;
    qsort(latencies, done_count, sizeof *latencies, by_size);
    qsort(chunk_latencies, kept, sizeof *chunk_latencies, by_size);
    printf("{\"done\":%d,\"failed\":%d,\"wrong\":%d,\"fewest\":%d,\"chunks\":%ld,\"bytes\":%ld", done_count, failed, wrong, fewest, chunk_count, byte_count);
    printf(",\"p50\":%lld,\"p99\":%lld", (long long)latencies[done_count / 2], (long long)latencies[done_count * 99LL / 100]);
    if (kept) printf(",\"chunk_p50\":%lld,\"chunk_p99\":%lld", (long long)chunk_latencies[kept / 2], (long long)chunk_latencies[kept * 99 / 100]);
    double cpu = used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
    printf(",\"seconds\":%.3f,\"cpu\":%.3f}\n", (now() - begun) / 1e6, cpu);
}

static int calls(char *path, int connections, int rate) {
    request = file(path);
    latencies = calloc(total + 1, sizeof *latencies);
    chunk_latencies = malloc(most_chunks * sizeof *chunk_latencies);
    for (int i = 0; i < connections; i++) {
        Caller *caller = calloc(1, sizeof *caller);
        caller->fd = -1;
        caller->next = idle;
        idle = caller;
    }
    int64_t begun = now(), due = begun;
    wake_at(due);
    for (struct epoll_event ready[256]; done_count < total;) {
        for (; idle && sent_count < total && (!rate || due <= now()); due += rate ? 1000000 / rate : 0) {
            Caller *caller = idle;
            idle = caller->next;
            call(caller, rate ? due : now());
        }
        if (rate && idle && sent_count < total) wake_at(due);
        int count = epoll_wait(loop, ready, 256, 1000);
        if (now() - begun > SECONDS_AT_MOST * 1000000LL) fail("too slow");
        for (int i = 0; i < count; i++) {
            Caller *caller = ready[i].data.ptr;
            if (!is_timer(caller) && caller->fd >= 0) hear_answer(caller);
        }
    }
    print_results(begun);
    return 0;
}

int main(int count, char **words) {
    begin_loop();
    if (count == 6 && !strcmp(words[1], "upstream"))
        upstream(atoi(words[2]), words[3], words[4], atoi(words[5]));
    if (count == 7 && !strcmp(words[1], "calls")) {
        port = atoi(words[2]);
        total = atoi(words[5]);
        return calls(words[3], atoi(words[4]), atoi(words[6]));
    }
    fprintf(stderr, "see the first lines of load.c\n");
    return 2;
}
