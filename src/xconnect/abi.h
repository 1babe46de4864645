/* What the BPF program and its loader share: map keys and values, drop reasons, the probe frame. C and C++.
 *
 * These structures live in pinned maps that outlast a bananad and may be met by a younger one. Any change to a
 * layout or to a meaning raises XC_ABI_VERSION; the loader refuses maps of another version.
 * No structure has padding that is not named: user space and BPF both hand the kernel every byte.
 */
#ifndef BANANA_XCONNECT_ABI_H
#define BANANA_XCONNECT_ABI_H

#include <linux/types.h>

#define XC_ABI_VERSION 2

enum xc_direction { XC_INGRESS = 0, XC_EGRESS = 1 };

/* A port as the program sees it: a netdev and the side of it that frames pass. */
struct xc_key {
    __u32 ifindex;
    __u32 direction; /* enum xc_direction */
};

enum xc_into { XC_INTO_EGRESS = 0, XC_INTO_INGRESS = 1 };

enum xc_kind { XC_SPIKE = 1, XC_WIRE = 2, XC_CORM = 3 };

#define XC_ALLOW_ANY_MAC 1u
/* For user space alone: the device's clsact qdisc was made for this port, and goes with it. */
#define XC_OWN_CLSACT 2u

/* All that a frame's way depends on, in one element, so that a frame costs one look-up. Its two halves come and go by
 * themselves: the policy (kind, flags, mac) says what the port is, the entry (target to generation) where its frames
 * go. An element is never written in place, but for `armed`. */
struct xc_port {
    __u8 kind;    /* enum xc_kind; 0: no policy, and every frame is dropped */
    __u8 flags;   /* XC_ALLOW_ANY_MAC, XC_OWN_CLSACT */
    __u8 mac[6];  /* a Spike's own */
    __u32 slot;   /* in the map `passed`; 0: none of its own */
    __u32 target; /* ifindex; 0: no entry */
    __u32 into;   /* enum xc_into */
    __u32 armed;  /* 1: the first frame that takes the entry reports, and clears this */
    __u64 generation;
};

enum xc_drop {
    XC_DROP_NO_ENTRY = 0,     /* the port is not cross-connected, or not known at all */
    XC_DROP_LINK_LOCAL,       /* a Spike sent to 01:80:c2:00:00:0x */
    XC_DROP_FOREIGN_MAC,      /* a Spike sent from an address that is not its own */
    XC_DROP_RUNT,             /* shorter than an Ethernet header */
    XC_DROP_PROBE_FROM_GUEST, /* a probe that came from a Spike, or from the network behind a Corm */
    XC_DROP_BAD_PROBE,        /* our magic on a wire, with a version or type that we do not know */
    XC_DROP_REASONS,          /* how many there are */
    XC_DROP_ROOM = 10         /* how many the map has room for */
};

struct xc_count {
    __u64 frames;
    __u64 bytes;
};

/* Frames redirected are counted in an array, by the port's slot: what the target then does with them stands in its own
 * statistics. Slot 0 is that of ports that have none. A GSO frame counts as one frame of its whole length (up to 64
 * KB), as the kernel's own tc counters do: `frames` is what passed the hook, not what a physical wire would see. Per
 * CPU. */

/* What is rare: looked up by xc_key when it happens, and made by the program then (by user space, in earlier versions).
 * Per CPU. */
struct xc_counters {
    struct xc_count probes; /* requests answered and replies handed up */
    struct xc_count drops[XC_DROP_ROOM];
};

/* First-frame report. */
struct xc_event {
    struct xc_key key;
    __u64 generation;
    __u64 ktime_ns; /* CLOCK_MONOTONIC */
};

struct xc_abi {
    __u32 version; /* 0: just created */
    __u32 reserved;
};

/* The probe frame: Ethernet header with ethertype "IEEE 802 local experimental 1", untagged, then this, then zeros up
 * to the size probed. All in network byte order but sent_ns, which only its sender reads. */
#define XC_PROBE_ETHERTYPE 0x88B5
#define XC_PROBE_MAGIC 0x424e7870u /* "BNxp" */
#define XC_PROBE_VERSION 1
enum xc_probe_type { XC_PROBE_REQUEST = 1, XC_PROBE_REPLY = 2 };

struct xc_probe {
    __u32 magic;
    __u8 version;
    __u8 type;
    __u16 reserved;
    __u64 nonce;
    __u64 sent_ns;
};

#endif
