#include "xconnect/attach.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fmt/core.h>
#include <sys/syscall.h>

#include <array>
#include <cerrno>

#include "base/fd.h"
#include "xconnect/objects.h"

namespace banana::xconnect {
namespace {

// bpf(2) as of Linux 6.6; Debian 12's headers and libbpf 1.1 know nothing of tcx. Written down here, not included, so
// that one binary works on either side. An older kernel refuses the attach type (EINVAL).
constexpr uint32_t attach_tcx_ingress = 46, attach_tcx_egress = 47;
constexpr uint32_t flag_replace = 1u << 2, flag_before = 1u << 3;

struct ProgAttach {
    uint32_t target_ifindex, program_fd, attach_type, flags, replace_fd, relative_fd;
    uint64_t expected_revision;
};
struct ProgQuery {
    uint32_t target_ifindex, attach_type, query_flags, attach_flags;
    uint64_t program_ids;
    uint32_t count, reserved;
    uint64_t program_flags, link_ids, link_flags, revision;
};

template <class Attr>
int bpf_call(int command, Attr& attr) {
    return static_cast<int>(syscall(SYS_bpf, command, &attr, sizeof(attr)));
}

uint32_t attach_type(PortKey port) {
    return port.direction == Direction::ingress ? attach_tcx_ingress : attach_tcx_egress;
}

constexpr uint32_t filter_handle = 1, filter_priority = 1;

bpf_tc_hook clsact_hook(PortKey port) {
    bpf_tc_hook hook{};
    hook.sz = sizeof(hook);
    hook.ifindex = static_cast<int>(port.ifindex);
    hook.attach_point = port.direction == Direction::ingress ? BPF_TC_INGRESS : BPF_TC_EGRESS;
    return hook;
}

bpf_tc_opts clsact_filter() {
    bpf_tc_opts filter{};
    filter.sz = sizeof(filter);
    filter.handle = filter_handle;
    filter.priority = filter_priority;
    return filter;
}

// The program of our filter slot, whoever's it is; 0: none (no filter, no clsact, no device).
Result<uint32_t> clsact_program(PortKey port) {
    auto hook = clsact_hook(port);
    auto filter = clsact_filter();
    int err = bpf_tc_query(&hook, &filter);
    if (err == 0) {
        take_libbpf_warnings();
        return filter.prog_id;
    }
    if (err == -ENOENT || err == -EINVAL || err == -ENODEV || err == -EOPNOTSUPP) {
        take_libbpf_warnings();
        return 0u;
    }
    return bpf_error(-err, "query clsact filter of " + port.text());
}

}  // namespace

bool is_ours(uint32_t id) { return program_name(id).starts_with("bn_xc_"); }

bool tcx_available() {
    ProgQuery query{};
    query.target_ifindex = 1;  // lo: there in every network namespace
    query.attach_type = attach_tcx_ingress;
    return bpf_call(BPF_PROG_QUERY, query) == 0;
}

Result<uint32_t> tcx_find(PortKey port) {
    std::array<uint32_t, 64> ids{};  // BPF_MPROG_MAX
    ProgQuery query{};
    query.target_ifindex = port.ifindex;
    query.attach_type = attach_type(port);
    query.program_ids = reinterpret_cast<uintptr_t>(ids.data());
    query.count = ids.size();
    if (bpf_call(BPF_PROG_QUERY, query) < 0) {
        if (errno == ENODEV || errno == EINVAL) return 0u;  // no such device; no tcx in this kernel
        return errno_error(errno, "query tcx programs of " + port.text());
    }
    for (uint32_t i = 0; i < query.count && i < ids.size(); i++)
        if (is_ours(ids[i])) return ids[i];
    return 0u;
}

Status tcx_put(PortKey port, int program, uint32_t old) {
    Fd old_fd;
    ProgAttach attach{};
    attach.target_ifindex = port.ifindex;
    attach.program_fd = static_cast<uint32_t>(program);
    attach.attach_type = attach_type(port);
    attach.flags = flag_before;  // with no relative: before all others
    if (old != 0) {
        old_fd.reset(bpf_prog_get_fd_by_id(old));
        if (!old_fd) return errno_error(errno, fmt::format("replace program {} of {}", old, port.text()));
        attach.flags = flag_replace;
        attach.replace_fd = static_cast<uint32_t>(old_fd.get());
    }
    if (bpf_call(BPF_PROG_ATTACH, attach) == 0) return {};
    return errno_error(errno, "attach cross-connect (tcx) to " + port.text());
}

Status tcx_remove(PortKey port, uint32_t id) {
    Fd program(bpf_prog_get_fd_by_id(id));
    if (!program) return {};
    ProgAttach detach{};
    detach.target_ifindex = port.ifindex;
    detach.program_fd = static_cast<uint32_t>(program.get());
    detach.attach_type = attach_type(port);
    if (bpf_call(BPF_PROG_DETACH, detach) == 0 || errno == ENOENT || errno == ENODEV) return {};
    return errno_error(errno, "detach cross-connect (tcx) from " + port.text());
}

Result<uint32_t> clsact_find(PortKey port) {
    TRY_SET(uint32_t id, clsact_program(port));
    return id != 0 && is_ours(id) ? id : 0u;
}

Status clsact_put(PortKey port, int program, uint32_t program_id) {
    auto hook = clsact_hook(port);
    int err = bpf_tc_hook_create(&hook);
    if (err < 0 && err != -EEXIST) return bpf_error(-err, "add clsact qdisc to " + port.text());
    take_libbpf_warnings();
    TRY_SET(uint32_t there, clsact_program(port));
    if (there != 0 && !is_ours(there))
        return Error(Errc::busy, fmt::format("attach cross-connect (clsact) to {}: BPF program {} ('{}') holds filter "
                                             "priority {}",
                                             port.text(), there, program_name(there), filter_priority));
    auto filter = clsact_filter();
    filter.prog_fd = program;
    filter.flags = there != 0 ? BPF_TC_F_REPLACE : 0;
    const char* hint = err == -EEXIST ? "; if the device has an 'ingress' qdisc (libvirt's <bandwidth> makes one), "
                                        "that excludes clsact"
                                      : "";
    if (int failed = bpf_tc_attach(&hook, &filter); failed < 0)
        return bpf_error(-failed, fmt::format("attach cross-connect (clsact) to {}{}", port.text(), hint));
    if (port.direction == Direction::ingress) return {};

    // Under an `ingress` qdisc both lists are one and our egress program would now see ingress frames.
    TRY_SET(uint32_t mirrored, clsact_program({port.ifindex, Direction::ingress}));
    if (mirrored != program_id) return {};
    TRY(clsact_remove(port));
    return Error(Errc::refused, fmt::format("attach cross-connect (clsact) to {}: the device has an 'ingress' qdisc "
                                            "(libvirt's <bandwidth> makes one), which excludes clsact",
                                            port.text()));
}

Status clsact_remove(PortKey port) {
    auto hook = clsact_hook(port);
    auto filter = clsact_filter();
    int err = bpf_tc_detach(&hook, &filter);
    if (err == 0 || err == -ENOENT || err == -EINVAL || err == -ENODEV) {
        take_libbpf_warnings();
        return {};
    }
    return bpf_error(-err, "detach cross-connect (clsact) from " + port.text());
}

Status clsact_destroy(PortKey port) {
    auto hook = clsact_hook(port);
    hook.attach_point = static_cast<bpf_tc_attach_point>(BPF_TC_INGRESS | BPF_TC_EGRESS);  // libbpf: both is the qdisc
    int err = bpf_tc_hook_destroy(&hook);
    take_libbpf_warnings();
    if (err == 0 || err == -ENOENT || err == -EINVAL || err == -ENODEV) return {};
    return bpf_error(-err, "delete clsact qdisc of " + port.text());
}

}  // namespace banana::xconnect
