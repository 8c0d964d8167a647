/* Stands between a process and the C library's writes, syncs, renames and removals (LD_PRELOAD).
 *
 * Armed by the process itself (ctypes): the n-th call of the chosen kinds on a path that contains a text fails, is cut
 * short, or ends the process with half of its bytes written. It can also note the order of the calls. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

enum { WRITE = 1, SYNC = 2, RENAME = 4, TRUNCATE = 8, UNLINK = 16 };
enum { FAIL = 1, SHORT_THEN_FAIL = 2, KILL = 3, TORN_KILL = 4 };

static int kinds, action, error, noting;
static long countdown, fired;
static char needle[512], note_needle[512], notes[1 << 20];
static size_t noted;

void fault_arm(int kinds_, long countdown_, int action_, int error_, const char *needle_) {
    kinds = kinds_, countdown = countdown_, action = action_, error = error_, fired = 0;
    snprintf(needle, sizeof needle, "%s", needle_);
}

long fault_fired(void) { return fired; }

void fault_note(const char *needle_) {
    noting = needle_[0] != 0, noted = 0, notes[0] = 0;
    snprintf(note_needle, sizeof note_needle, "%s", needle_);
}

const char *fault_notes(void) { return notes; }

static const char *path_of(int fd, char *room, size_t size) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, room, size - 1);
    room[n < 0 ? 0 : n] = 0;
    return room;
}

/* Returns 0 to go on, 1 to fail, 2 to write the first half and succeed. */
static int decide(int kind, const char *what, int fd, const char *path, size_t bytes) {
    char room[4096];
    if (!kinds && !noting) return 0;
    if (!path) path = path_of(fd, room, sizeof room);
    if (noting && strstr(path, note_needle) && noted + strlen(path) + 64 < sizeof notes)
        noted += (size_t)sprintf(notes + noted, "%s %s %zu\n", what, path, bytes);
    if (!(kinds & kind) || !strstr(path, needle)) return 0;
    if (fired) { /* a full or broken disk stays so */
        errno = error;
        return 1;
    }
    if (--countdown > 0) return 0;
    fired = 1;
    if (action == KILL || (action == TORN_KILL && kind != WRITE)) raise(SIGKILL);
    if (action == FAIL || (action == SHORT_THEN_FAIL && kind != WRITE)) {
        errno = error;
        return 1;
    }
    return 2;
}

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

ssize_t write(int fd, const void *buffer, size_t size) {
    REAL(write);
    int verdict = decide(WRITE, "write", fd, NULL, size);
    if (verdict == 1) return -1;
    ssize_t done = real(fd, buffer, verdict == 2 ? (size + 1) / 2 : size);
    if (verdict == 2 && action == TORN_KILL) raise(SIGKILL);
    return done;
}

ssize_t pwrite(int fd, const void *buffer, size_t size, off_t at) {
    REAL(pwrite);
    int verdict = decide(WRITE, "write", fd, NULL, size);
    if (verdict == 1) return -1;
    ssize_t done = real(fd, buffer, verdict == 2 ? (size + 1) / 2 : size, at);
    if (verdict == 2 && action == TORN_KILL) raise(SIGKILL);
    return done;
}

ssize_t pwrite64(int fd, const void *buffer, size_t size, off64_t at) {
    REAL(pwrite64);
    int verdict = decide(WRITE, "write", fd, NULL, size);
    if (verdict == 1) return -1;
    ssize_t done = real(fd, buffer, verdict == 2 ? (size + 1) / 2 : size, at);
    if (verdict == 2 && action == TORN_KILL) raise(SIGKILL);
    return done;
}

int fsync(int fd) {
    REAL(fsync);
    return decide(SYNC, "sync", fd, NULL, 0) ? -1 : real(fd);
}

int fdatasync(int fd) {
    REAL(fdatasync);
    return decide(SYNC, "sync", fd, NULL, 0) ? -1 : real(fd);
}

int ftruncate(int fd, off_t size) {
    REAL(ftruncate);
    return decide(TRUNCATE, "truncate", fd, NULL, (size_t)size) ? -1 : real(fd, size);
}

int ftruncate64(int fd, off64_t size) {
    REAL(ftruncate64);
    return decide(TRUNCATE, "truncate", fd, NULL, (size_t)size) ? -1 : real(fd, size);
}

int rename(const char *from, const char *to) {
    REAL(rename);
    return decide(RENAME, "rename", -1, to, 0) ? -1 : real(from, to);
}

int renameat(int from_fd, const char *from, int to_fd, const char *to) {
    REAL(renameat);
    return decide(RENAME, "rename", -1, to, 0) ? -1 : real(from_fd, from, to_fd, to);
}

int unlink(const char *path) {
    REAL(unlink);
    return decide(UNLINK, "unlink", -1, path, 0) ? -1 : real(path);
}

/* Of a path below an open folder, the folder is what is looked at. */
int unlinkat(int folder_fd, const char *path, int flags) {
    REAL(unlinkat);
    return decide(UNLINK, "unlink", folder_fd, folder_fd == AT_FDCWD ? path : NULL, 0) ? -1
                                                                                        : real(folder_fd, path, flags);
}

int rmdir(const char *path) {
    REAL(rmdir);
    return decide(UNLINK, "unlink", -1, path, 0) ? -1 : real(path);
}
