// The cross-connect: the one program at every port, at tc ingress or egress (tcx or clsact).
//
// A frame's way: what is this port? too short? may a Spike send this? a probe? where to?
// Whatever has no answer is dropped and counted: fail closed. One hash look-up finds all that is known of the port, and
// the element is replaced whole (a hash map swaps elements under RCU), so a frame sees the old entry or the new one,
// never a mixture. At a million frames a second a look-up is what costs; so frames that pass are counted in an array,
// by a number that stands in the element, and only drops and probes look for their counters.
//
// Probes. A request that reaches a wire is turned round here and leaves by the device it came from: the far host
// answers at full size, over the real path, with no socket and with no entry set (a standby wire is probed before it is
// used). A reply is handed up the stack to bananad's packet socket. Guests and the networks behind Corms cannot send
// probes: frames of that shape from there are dropped, so nothing but a host at a wire's end can make or answer one.
//
// VLAN tags: the kernel has moved an outer tag out of the frame before this runs at ingress; it travels as metadata and
// comes back on transmission. A tagged frame is never a probe.
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "xconnect/abi.h"

// Filled in by user space alone; elements are allocated as they are needed, so that the capacity costs nothing.
struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __uint(max_entries, 16384);
    __type(key, struct xc_key);
    __type(value, struct xc_port);
} ports SEC(".maps");

// Here the capacity costs 16 bytes a port and CPU.
struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, 16385);
    __type(key, __u32);
    __type(value, struct xc_count);
} passed SEC(".maps");

// An element is made with a port's first drop or probe; most ports never have one. The element of key {0, 0} takes the
// drops of ports that nobody registered, and those for which the kernel has no memory at that moment.
struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_HASH);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __uint(max_entries, 16385);
    __type(key, struct xc_key);
    __type(value, struct xc_counters);
} counters SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_RINGBUF);
    __uint(max_entries, 256 * 1024);
} events SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct xc_abi);
} abi SEC(".maps");

#define unlikely(condition) __builtin_expect(!!(condition), 0)

static __always_inline void count(struct xc_count* c, __u32 bytes) {
    c->frames++;  // per CPU, and tc runs with bottom halves off: no atomics
    c->bytes += bytes;
}

static __always_inline struct xc_counters* counters_of(const struct xc_key* key) {
    struct xc_counters* counts = bpf_map_lookup_elem(&counters, key);
    if (counts) return counts;
    struct xc_counters none = {};
    bpf_map_update_elem(&counters, key, &none, BPF_NOEXIST);  // another CPU may have been first
    counts = bpf_map_lookup_elem(&counters, key);
    struct xc_key unknown = {};
    return counts ? counts : bpf_map_lookup_elem(&counters, &unknown);
}

static __always_inline int drop(const struct xc_key* key, enum xc_drop reason, __u32 bytes) {
    struct xc_counters* counts = counters_of(key);
    if (counts) count(&counts->drops[reason], bytes);
    return TC_ACT_SHOT;
}

// A frame of a port that has no policy.
static __always_inline int drop_unknown(__u32 bytes) {
    struct xc_key unknown = {};
    return drop(&unknown, XC_DROP_NO_ENTRY, bytes);
}

// MAC addresses are read by halves of a word: those of a frame, and of a port, are aligned to that.
static __always_inline int is_link_local(const __u16* mac) {
    return mac[0] == bpf_htons(0x0180) && mac[1] == bpf_htons(0xc200) && !(mac[2] & bpf_htons(0xfff0));
}

static __always_inline int is_same_mac(const __u16* one, const __u16* other) {
    return !((one[0] ^ other[0]) | (one[1] ^ other[1]) | (one[2] ^ other[2]));
}

// Reads the probe header; 1 when this frame is one of ours. The caller has looked at the ethertype.
static __always_inline int read_probe(struct __sk_buff* skb, struct xc_probe* probe) {
    if (skb->vlan_present) return 0;
    if (bpf_skb_load_bytes(skb, ETH_HLEN, probe, sizeof(*probe))) return 0;
    return probe->magic == bpf_htonl(XC_PROBE_MAGIC);
}

static __always_inline int answer_probe(struct __sk_buff* skb) {
    __u8 macs[2 * ETH_ALEN], swapped[2 * ETH_ALEN];
    __u8 type = XC_PROBE_REPLY;
    if (bpf_skb_load_bytes(skb, 0, macs, sizeof(macs))) return TC_ACT_SHOT;
    __builtin_memcpy(swapped, macs + ETH_ALEN, ETH_ALEN);
    __builtin_memcpy(swapped + ETH_ALEN, macs, ETH_ALEN);
    if (bpf_skb_store_bytes(skb, 0, swapped, sizeof(swapped), 0)) return TC_ACT_SHOT;
    if (bpf_skb_store_bytes(skb, ETH_HLEN + __builtin_offsetof(struct xc_probe, type), &type, 1, 0)) return TC_ACT_SHOT;
    return bpf_redirect(skb->ifindex, 0);
}

// A probe, on a port of this kind and side. Only a wire's ingress answers.
static __always_inline int on_probe(struct __sk_buff* skb, __u8 kind, const struct xc_probe* probe,
                                    const struct xc_key* key) {
    if (kind != XC_WIRE || key->direction != XC_INGRESS) return drop(key, XC_DROP_PROBE_FROM_GUEST, skb->len);
    if (probe->version != XC_PROBE_VERSION) return drop(key, XC_DROP_BAD_PROBE, skb->len);
    if (probe->type != XC_PROBE_REQUEST && probe->type != XC_PROBE_REPLY) return drop(key, XC_DROP_BAD_PROBE, skb->len);
    struct xc_counters* counts = counters_of(key);
    if (counts) count(&counts->probes, skb->len);
    return probe->type == XC_PROBE_REPLY ? TC_ACT_OK : answer_probe(skb);
}

// Room is taken before the flag is cleared: when the ring is full the entry stays armed and the next frame reports.
static __always_inline void report_first(const struct xc_key* key, struct xc_port* port) {
    struct xc_event* event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
    if (!event) return;
    if (__sync_val_compare_and_swap(&port->armed, 1, 0) != 1) {  // another CPU was first
        bpf_ringbuf_discard(event, 0);
        return;
    }
    event->key = *key;
    event->generation = port->generation;
    event->ktime_ns = bpf_ktime_get_ns();
    bpf_ringbuf_submit(event, 0);
}

static __always_inline int cross_connect(struct __sk_buff* skb, __u32 direction) {
    struct xc_key key = {.ifindex = skb->ifindex, .direction = direction};
    struct xc_port* port = bpf_map_lookup_elem(&ports, &key);
    if (unlikely(!port || !port->kind)) return drop_unknown(skb->len);

    struct ethhdr* eth = (void*)(long)skb->data;
    if (unlikely((void*)(eth + 1) > (void*)(long)skb->data_end)) {
        if (skb->len < ETH_HLEN || bpf_skb_pull_data(skb, ETH_HLEN)) return drop(&key, XC_DROP_RUNT, skb->len);
        eth = (void*)(long)skb->data;
        if ((void*)(eth + 1) > (void*)(long)skb->data_end) return drop(&key, XC_DROP_RUNT, skb->len);
    }

    if (port->kind == XC_SPIKE) {
        if (unlikely(is_link_local((void*)eth->h_dest))) return drop(&key, XC_DROP_LINK_LOCAL, skb->len);
        if (unlikely(!is_same_mac((void*)eth->h_source, (void*)port->mac)) && !(port->flags & XC_ALLOW_ANY_MAC))
            return drop(&key, XC_DROP_FOREIGN_MAC, skb->len);
    }
    if (unlikely(eth->h_proto == bpf_htons(XC_PROBE_ETHERTYPE))) {
        struct xc_probe probe;
        if (read_probe(skb, &probe)) return on_probe(skb, port->kind, &probe, &key);
    }

    if (unlikely(!port->target)) return drop(&key, XC_DROP_NO_ENTRY, skb->len);
    if (unlikely(port->armed)) report_first(&key, port);
    __u32 slot = port->slot;
    struct xc_count* count_passed = bpf_map_lookup_elem(&passed, &slot);
    if (count_passed) count(count_passed, skb->len);
    return bpf_redirect(port->target, port->into == XC_INTO_INGRESS ? BPF_F_INGRESS : 0);
}

SEC("tc")
int bn_xc_ingress(struct __sk_buff* skb) { return cross_connect(skb, XC_INGRESS); }

SEC("tc")
int bn_xc_egress(struct __sk_buff* skb) { return cross_connect(skb, XC_EGRESS); }

// bpf_skb_pull_data, bpf_redirect and the ring buffer are open to GPL-compatible programs only.
char _license[] SEC("license") = "GPL";
