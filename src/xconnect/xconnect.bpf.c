// The cross-connect: the one program at every port, at tc ingress or egress (tcx or clsact).
//
// A frame's way: too short? what is this port (policy)? may a Spike send this? a probe? where to (entry)?
// Whatever has no answer is dropped and counted: fail closed. Each map is looked up once for a frame, and an entry is
// replaced whole (a hash map swaps elements under RCU), so a frame sees the old entry or the new one, never a mixture.
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
    __uint(max_entries, 65536);
    __type(key, struct xc_key);
    __type(value, struct xc_entry);
} entries SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __uint(max_entries, 65536);
    __type(key, struct xc_key);
    __type(value, struct xc_policy);
} policies SEC(".maps");

// The element of key {0, 0} takes the drops of ports that nobody registered.
struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_HASH);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __uint(max_entries, 65537);
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

static __always_inline void count(struct xc_count* c, __u32 bytes) {
    c->frames++;  // per CPU, and tc runs with bottom halves off: no atomics
    c->bytes += bytes;
}

static __always_inline int drop(struct xc_counters* counts, enum xc_drop reason, __u32 bytes) {
    if (counts) count(&counts->drops[reason], bytes);
    return TC_ACT_SHOT;
}

static __always_inline struct xc_counters* counters_of(const struct xc_key* key) {
    struct xc_counters* counts = bpf_map_lookup_elem(&counters, key);
    struct xc_key unknown = {};
    return counts ? counts : bpf_map_lookup_elem(&counters, &unknown);
}

static __always_inline int is_link_local(const __u8* mac) {
    return mac[0] == 0x01 && mac[1] == 0x80 && mac[2] == 0xc2 && !mac[3] && !mac[4] && (mac[5] & 0xf0) == 0;
}

static __always_inline int is_own_mac(const __u8* mac, const struct xc_policy* policy) {
    for (int i = 0; i < ETH_ALEN; i++)
        if (mac[i] != policy->mac[i]) return 0;
    return 1;
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
static __always_inline int on_probe(struct __sk_buff* skb, const struct xc_policy* policy, const struct xc_probe* probe,
                                    __u32 direction, struct xc_counters* counts) {
    if (policy->kind != XC_WIRE || direction != XC_INGRESS) return drop(counts, XC_DROP_PROBE_FROM_GUEST, skb->len);
    if (probe->version != XC_PROBE_VERSION) return drop(counts, XC_DROP_BAD_PROBE, skb->len);
    if (probe->type != XC_PROBE_REQUEST && probe->type != XC_PROBE_REPLY)
        return drop(counts, XC_DROP_BAD_PROBE, skb->len);
    if (counts) count(&counts->probes, skb->len);
    return probe->type == XC_PROBE_REPLY ? TC_ACT_OK : answer_probe(skb);
}

// Room is taken before the flag is cleared: when the ring is full the entry stays armed and the next frame reports.
static __always_inline void report_first(const struct xc_key* key, struct xc_entry* entry) {
    struct xc_event* event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
    if (!event) return;
    if (__sync_val_compare_and_swap(&entry->armed, 1, 0) != 1) {  // another CPU was first
        bpf_ringbuf_discard(event, 0);
        return;
    }
    event->key = *key;
    event->generation = entry->generation;
    event->ktime_ns = bpf_ktime_get_ns();
    bpf_ringbuf_submit(event, 0);
}

static __always_inline int cross_connect(struct __sk_buff* skb, __u32 direction) {
    struct xc_key key = {.ifindex = skb->ifindex, .direction = direction};
    struct xc_counters* counts = counters_of(&key);
    struct xc_policy* policy = bpf_map_lookup_elem(&policies, &key);
    if (!policy) return drop(counts, XC_DROP_NO_ENTRY, skb->len);

    if ((void*)(long)skb->data + ETH_HLEN > (void*)(long)skb->data_end) {
        if (skb->len < ETH_HLEN || bpf_skb_pull_data(skb, ETH_HLEN)) return drop(counts, XC_DROP_RUNT, skb->len);
    }
    struct ethhdr* eth = (void*)(long)skb->data;
    if ((void*)(eth + 1) > (void*)(long)skb->data_end) return drop(counts, XC_DROP_RUNT, skb->len);

    if (policy->kind == XC_SPIKE) {
        if (is_link_local(eth->h_dest)) return drop(counts, XC_DROP_LINK_LOCAL, skb->len);
        if (!(policy->flags & XC_ALLOW_ANY_MAC) && !is_own_mac(eth->h_source, policy))
            return drop(counts, XC_DROP_FOREIGN_MAC, skb->len);
    }
    if (eth->h_proto == bpf_htons(XC_PROBE_ETHERTYPE)) {
        struct xc_probe probe;
        if (read_probe(skb, &probe)) return on_probe(skb, policy, &probe, direction, counts);
    }

    struct xc_entry* entry = bpf_map_lookup_elem(&entries, &key);
    if (!entry) return drop(counts, XC_DROP_NO_ENTRY, skb->len);
    if (entry->armed) report_first(&key, entry);
    if (counts) count(&counts->passed, skb->len);
    return bpf_redirect(entry->target, entry->into == XC_INTO_INGRESS ? BPF_F_INGRESS : 0);
}

SEC("tc")
int bn_xc_ingress(struct __sk_buff* skb) { return cross_connect(skb, XC_INGRESS); }

SEC("tc")
int bn_xc_egress(struct __sk_buff* skb) { return cross_connect(skb, XC_EGRESS); }

// bpf_skb_pull_data, bpf_redirect and the ring buffer are open to GPL-compatible programs only.
char _license[] SEC("license") = "GPL";
