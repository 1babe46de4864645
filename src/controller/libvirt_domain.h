// What the domain calls and the events share. Nobody else includes this.
#pragma once

#include <libvirt/libvirt.h>

#include "controller/libvirt.h"

namespace banana::controller {

// Name and UUID are kept in the handle: libvirtd is not asked.
Domain domain_of(virDomainPtr domain);

}  // namespace banana::controller
