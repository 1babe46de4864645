// Opening order: directory, ABI version, maps (libbpf takes a pinned map up if type and sizes agree), programs.
// The version is written after the maps are pinned, so a process that dies in between leaves version 0, which the next
// open completes. A program is taken up only if its tag (the kernel's digest of its instructions) is that of the one
// just loaded and it uses these very maps; otherwise ours takes its pin by rename, and ports change over as they are
// attached.
#include "xconnect/objects.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fcntl.h>
#include <fmt/core.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <algorithm>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <vector>

#include "xconnect/xconnect.skel.h"

namespace banana::xconnect {
namespace {

thread_local std::string libbpf_warnings;

int keep_warning(libbpf_print_level level, const char* format, va_list args) {
    if (level != LIBBPF_WARN) return 0;
    char line[512];
    vsnprintf(line, sizeof(line), format, args);
    std::string_view text(line);
    while (!text.empty() && text.back() == '\n') text.remove_suffix(1);
    if (libbpf_warnings.size() < 2048) libbpf_warnings += (libbpf_warnings.empty() ? "" : "; ") + std::string(text);
    return 0;
}

struct SkeletonDeleter {
    void operator()(xconnect_bpf* skeleton) const { xconnect_bpf::destroy(skeleton); }
};
using Skeleton = std::unique_ptr<xconnect_bpf, SkeletonDeleter>;

bool on_bpffs(const std::string& path) {
    struct statfs fs {};
    return ::statfs(path.c_str(), &fs) == 0 && fs.f_type == BPF_FS_MAGIC;
}

Status ensure_directory(const std::string& dir) {
    if (::mkdir(dir.c_str(), 0700) < 0 && errno != EEXIST) {
        int err = errno;
        auto parent = std::filesystem::path(dir).parent_path().string();
        if (err == ENOENT)
            return Error(Errc::not_found, fmt::format("make BPF directory {}: {} does not exist", dir, parent));
        return errno_error(err, "make BPF directory " + dir);
    }
    if (on_bpffs(dir)) return {};
    ::rmdir(dir.c_str());  // made just now on another file system, or not empty and then left alone
    return Error(Errc::invalid, fmt::format("open BPF directory {}: it is not on a BPF file system; mount one with "
                                            "'mount -t bpf bpf /sys/fs/bpf' and choose a directory under it",
                                            dir));
}

// Refuses a directory of another ABI version before anything in it is touched.
Status check_version(const std::string& dir) {
    Fd map(bpf_obj_get((dir + "/abi").c_str()));
    if (!map) {
        if (errno == ENOENT) return {};
        return errno_error(errno, fmt::format("open pinned map {}/abi", dir));
    }
    bpf_map_info info{};
    __u32 length = sizeof(info);
    if (bpf_obj_get_info_by_fd(map.get(), &info, &length) < 0) return errno_error(errno, "inspect " + dir + "/abi");
    uint32_t zero = 0;
    std::vector<char> value(std::max<size_t>(info.value_size, sizeof(xc_abi)));
    if (bpf_map_lookup_elem(map.get(), &zero, value.data()) < 0) return errno_error(errno, "read " + dir + "/abi");
    uint32_t version = 0;
    memcpy(&version, value.data(), sizeof(version));
    if (version == 0 || version == XC_ABI_VERSION) return {};
    return Error(
        Errc::unsupported,
        fmt::format("open BPF directory {}: its objects are of ABI version {}, this program speaks {}; run the "
                    "bananad that made them, or take its wires down and remove the directory",
                    dir, version, XC_ABI_VERSION));
}

// A pinned map keeps the capacity that it was made with.
uint32_t pinned_capacity(const std::string& path, uint32_t wanted) {
    Fd map(bpf_obj_get(path.c_str()));
    bpf_map_info info{};
    __u32 length = sizeof(info);
    if (!map || bpf_obj_get_info_by_fd(map.get(), &info, &length) < 0) return wanted;
    return info.max_entries;
}

Status pin_maps_at(xconnect_bpf& skeleton, const std::string& dir, uint32_t capacity) {
    struct {
        bpf_map* map;
        const char* name;
        uint32_t capacity;  // 0: as the program says
    } maps[] = {{skeleton.maps.ports, "ports", capacity},
                {skeleton.maps.passed, "passed", capacity + 1},
                {skeleton.maps.counters, "counters", capacity + 1},
                {skeleton.maps.events, "events", 0},
                {skeleton.maps.abi, "abi", 0}};
    for (auto& [map, name, size] : maps) {
        auto path = dir + "/" + name;
        if (bpf_map__set_pin_path(map, path.c_str()) < 0) return errno_error(ENOMEM, "prepare map " + path);
        if (size != 0 && bpf_map__set_max_entries(map, pinned_capacity(path, size)) < 0)
            return errno_error(EINVAL, "size map " + path);
    }
    return {};
}

Result<Fd> duplicate(int fd, const std::string& what) {
    Fd copy(fcntl(fd, F_DUPFD_CLOEXEC, 3));
    if (!copy) return errno_error(errno, "duplicate descriptor of " + what);
    return copy;
}

Status complete_maps(const xconnect_bpf& skeleton, const std::string& dir) {
    uint32_t zero = 0;
    xc_abi abi{XC_ABI_VERSION, 0};
    if (bpf_map_update_elem(bpf_map__fd(skeleton.maps.abi), &zero, &abi, BPF_ANY) < 0)
        return errno_error(errno, "write version to " + dir + "/abi");
    int cpus = libbpf_num_possible_cpus();
    if (cpus < 0) return errno_error(-cpus, "count possible CPUs");
    std::vector<xc_counters> blank(static_cast<size_t>(cpus));
    xc_key unknown{};
    if (bpf_map_update_elem(bpf_map__fd(skeleton.maps.counters), &unknown, blank.data(), BPF_NOEXIST) < 0 &&
        errno != EEXIST)
        return errno_error(errno, "prepare map " + dir + "/counters");
    return {};
}

struct ProgramFacts {
    bpf_prog_info info{};
    std::array<__u32, 16> maps{};
};

bool read_facts(int fd, ProgramFacts& facts) {
    facts.info.nr_map_ids = facts.maps.size();
    facts.info.map_ids = reinterpret_cast<uintptr_t>(facts.maps.data());
    __u32 length = sizeof(facts.info);
    if (bpf_obj_get_info_by_fd(fd, &facts.info, &length) < 0) return false;
    std::sort(facts.maps.begin(), facts.maps.end());
    return true;
}

Result<Program> take_program(int loaded, const std::string& path) {
    ProgramFacts ours, pinned;
    if (!read_facts(loaded, ours)) return errno_error(errno, "inspect BPF program for " + path);
    Fd old(bpf_obj_get(path.c_str()));
    if (old && read_facts(old.get(), pinned) && memcmp(pinned.info.tag, ours.info.tag, sizeof(ours.info.tag)) == 0 &&
        pinned.maps == ours.maps)
        return Program{std::move(old), pinned.info.id};

    auto fresh = path + "_new";  // a bpffs takes no dots in names
    ::unlink(fresh.c_str());
    if (bpf_obj_pin(loaded, fresh.c_str()) < 0) return errno_error(errno, "pin BPF program " + fresh);
    if (::rename(fresh.c_str(), path.c_str()) < 0) return errno_error(errno, "rename BPF program to " + path);
    TRY_SET(Fd copy, duplicate(loaded, path));
    return Program{std::move(copy), ours.info.id};
}

}  // namespace

std::string take_libbpf_warnings() { return std::exchange(libbpf_warnings, {}); }

Error bpf_error(int err, const std::string& what) {
    auto words = take_libbpf_warnings();
    auto error = errno_error(err, what);
    return words.empty() ? error : Error(error.code(), fmt::format("{} ({})", error.message(), words));
}

std::string program_name(uint32_t id) {
    Fd program(bpf_prog_get_fd_by_id(id));
    bpf_prog_info info{};
    __u32 length = sizeof(info);
    if (!program || bpf_obj_get_info_by_fd(program.get(), &info, &length) < 0) return "";
    return {info.name, strnlen(info.name, sizeof(info.name))};
}

Result<Objects> open_objects(const std::string& dir, uint32_t capacity) {
    libbpf_set_print(keep_warning);
    take_libbpf_warnings();
    TRY(ensure_directory(dir));
    TRY(check_version(dir));
    Skeleton skeleton(xconnect_bpf::open());
    if (!skeleton) return bpf_error(errno, "read the built-in BPF program");
    TRY(pin_maps_at(*skeleton, dir, capacity));
    if (int err = xconnect_bpf::load(skeleton.get()); err < 0) return bpf_error(-err, "load BPF program into " + dir);
    TRY(complete_maps(*skeleton, dir));

    Objects objects;
    TRY_SET(objects.ports, duplicate(bpf_map__fd(skeleton->maps.ports), "ports"));
    TRY_SET(objects.passed, duplicate(bpf_map__fd(skeleton->maps.passed), "passed"));
    objects.slots = bpf_map__max_entries(skeleton->maps.passed);
    TRY_SET(objects.counters, duplicate(bpf_map__fd(skeleton->maps.counters), "counters"));
    TRY_SET(objects.events, duplicate(bpf_map__fd(skeleton->maps.events), "events"));
    TRY_SET(objects.programs[XC_INGRESS],
            take_program(bpf_program__fd(skeleton->progs.bn_xc_ingress), dir + "/ingress"));
    TRY_SET(objects.programs[XC_EGRESS], take_program(bpf_program__fd(skeleton->progs.bn_xc_egress), dir + "/egress"));
    return objects;
}

Status unpin_objects(const std::string& dir) {
    // "entries" and "policies": of ABI version 1.
    for (const char* name : {"ingress", "egress", "ingress_new", "egress_new", "ports", "passed", "counters", "events",
                             "abi", "entries", "policies"}) {
        if (::unlink((dir + "/" + name).c_str()) < 0 && errno != ENOENT)
            return errno_error(errno, fmt::format("unpin {}/{}", dir, name));
    }
    if (::rmdir(dir.c_str()) < 0 && errno != ENOENT) return errno_error(errno, "remove BPF directory " + dir);
    return {};
}

}  // namespace banana::xconnect
