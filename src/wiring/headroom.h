// Headroom: room before a frame for VXLAN's headers, so that the kernel need not copy the frame's head to put them
// there.
//
// Concepts: whoever builds a frame for a veth leaves the room that the veth's other end asks for, and that asks for
// none unless it is a port of a bridge in which some device does, as a VXLAN does (theory: headroom.cpp). So each
// bridge that Banana makes for a Corm has a VXLAN device as a port that is never up; and adopted netdevs, which are in
// no bridge, are put into one: a *stage*, a bridge that is down, with such a device. A stage is also what an anchor is
// to taps: what the cross-connect does not take is dropped there, and reaches neither the host nor anybody else. Wires
// work without all this, only slower: whoever cannot have it goes on. Threading: pure functions.
#pragma once

#include "wiring/plan.h"

namespace banana::wiring {

inline constexpr size_t bridge_ports_max = 1023;              // BR_MAX_PORTS of the Linux bridge, less port 0
inline constexpr size_t stage_places = bridge_ports_max - 1;  // one is the VXLAN device's
size_t reserved_ports(const model::Corm& corm);               // of its bridge, that no wire can have

Plan plan_headroom(const Site& site, const model::Corm& corm);  // nothing for a bridge that is somebody else's
Plan plan_stage(const Site& site, uint32_t number);             // stages count from 1
Plan plan_stage_gone(uint32_t number);
Plan plan_staged(const model::Spike& spike);    // it in its stage, which stands, if no other bridge has it
Plan plan_unstaged(const model::Spike& spike);  // it alone; the stage is for the others

}  // namespace banana::wiring
