// Control: how bananad tells banana-tunneld what to carry.
//
// Concepts: a UNIX socket of type SOCK_SEQPACKET; a message is one JSON object of at most control_max bytes, with
// descriptors (SCM_RIGHTS) where the table says so. Requests are answered in order: {"id","method","params"} ->
// {"id","result"} or {"id","error":{"code","message"}}. tunneld keeps nothing on disk: a controller that connects says
// hello, compares `wire.list` with its own records and makes the difference go away; nothing changes for wires that
// are the same, so a controller may come and go under traffic. tunneld needs no privileges: sockets and taps are opened
// by the controller and handed over. Only root and tunneld's own user may connect; one controller at a time is heard,
// the latest.
//
//   configure     address, port, lanes, cpus [n...], poll ("auto"|"never"), rekey_seconds, rekey_records
//                 with the UDP sockets: listening 0, dialling 0, listening 1, ...
//                 -> {}; what it had before ends, wires and peers included
//   peers         peers [{name, address, port, lanes}]: all of them; in several messages: part (from 0), more
//                 -> {}; they count when the last part has come. One that follows no other is refused
//   wire.add      connector (hex32), device, peer, mtu; with tap queues, one for each lane that both hosts have
//                 -> {}; the same connector again: replaced
//   wire.remove   connector
//                 -> {}; not there: done already
//   wire.list     after (connector or "")
//                 -> wires [{connector, device, peer, mtu, lost}] in order, more; lost: its tap was deleted
//   wire.show     connector
//                 -> of one: the above, sent and received {frames, bytes}, drops {reason: frames}, lanes [...]
//   status        after (a peer's name or "")
//                 -> lanes [...], peers [{name, state, reason, lanes [...]}] in order, more, wires (how many)
//   rekey         peer ("": all)
//                 -> {}
//   hello         version
//                 -> version, pid, host, configured (the last configure's params, or null), gso, gro, cipher
//
//   event         {"event": "peer", "name", "state": "up"|"connecting", "reason"}, to the controller
//
// Threading: the control thread. Errors: a message that is no request gets an error answer or ends the connection.
#pragma once

#include <cstddef>

namespace banana::tunnel {

inline constexpr int control_version = 1;
inline constexpr size_t control_max = 64 * 1024;
inline constexpr size_t control_fds_max = 64;
inline constexpr size_t control_sessions_max = 64;  // in one answer of status, which holds at least one peer
inline constexpr size_t control_list_max = 256;     // wires in one answer of wire.list, peers in one message

}  // namespace banana::tunnel
