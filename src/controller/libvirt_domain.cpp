// The calls that concern one domain, and the list of all. Each lambda runs on a worker and may block; what it returns
// is posted back by LibvirtCore::run().
#include "controller/libvirt_domain.h"

#include <libvirt/libvirt-qemu.h>

#include <string_view>

#include "controller/libvirt_core.h"

namespace banana::controller {

namespace {

std::string object(const std::string& uuid) { return "domain " + uuid; }

Result<DomainOwner> find(virConnectPtr connection, const std::string& uuid, const std::string& what) {
    DomainOwner domain(virDomainLookupByUUIDString(connection, uuid.c_str()));
    if (!domain) return last_error(what);
    return domain;
}

// Both definitions that a domain may have: the running one and the persistent one.
Result<unsigned> definitions(virDomainPtr domain, const std::string& what) {
    const int active = virDomainIsActive(domain);
    if (active < 0) return last_error(what);
    const int persistent = virDomainIsPersistent(domain);
    if (persistent < 0) return last_error(what);
    unsigned flags = 0;
    if (active) flags |= VIR_DOMAIN_AFFECT_LIVE;
    if (persistent) flags |= VIR_DOMAIN_AFFECT_CONFIG;
    return flags;
}

class JobParameters {
public:
    JobParameters() = default;
    JobParameters(const JobParameters&) = delete;
    JobParameters& operator=(const JobParameters&) = delete;
    ~JobParameters() { virTypedParamsFree(list, count); }
    virTypedParameterPtr list = nullptr;
    int count = 0;
};

Result<DomainJob> job_of(virDomainPtr domain, const std::string& what) {
    int type = VIR_DOMAIN_JOB_NONE;
    JobParameters parameters;
    if (virDomainGetJobStats(domain, &type, &parameters.list, &parameters.count, 0) < 0) {
        // A domain that is not running has no job; libvirt calls the question invalid.
        if (virGetLastErrorCode() == VIR_ERR_OPERATION_INVALID) return DomainJob{};
        return last_error(what);
    }
    DomainJob job;
    job.active = type == VIR_DOMAIN_JOB_BOUNDED || type == VIR_DOMAIN_JOB_UNBOUNDED;
    if (!job.active) return job;
    if (virTypedParamsGetInt(parameters.list, parameters.count, VIR_DOMAIN_JOB_OPERATION, &job.operation) < 0)
        return last_error(what);
    job.migration_out = job.operation == VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT;
    job.migration_in = job.operation == VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN;
    unsigned long long elapsed = 0;
    if (virTypedParamsGetULLong(parameters.list, parameters.count, VIR_DOMAIN_JOB_TIME_ELAPSED, &elapsed) > 0)
        job.elapsed_ms = elapsed;
    return job;
}

Result<std::vector<DomainEntry>> list_domains(virConnectPtr connection, const std::string& what) {
    LibvirtList<virDomain> domains;
    const int count = virConnectListAllDomains(connection, domains.out(), 0);
    if (count < 0) return last_error(what);
    domains.set_size(count);
    std::vector<DomainEntry> entries;
    for (virDomainPtr domain : domains) {
        DomainEntry entry{domain_of(domain), {}};
        if (virDomainGetState(domain, &entry.state.state, &entry.state.reason, 0) < 0) {
            if (virGetLastErrorCode() == VIR_ERR_NO_DOMAIN) continue;  // gone since it was listed
            return last_error(what + ": state of " + entry.domain.name);
        }
        entries.push_back(std::move(entry));
    }
    return entries;
}

Result<std::string> read_metadata(virDomainPtr domain, const std::string& what) {
    const LibvirtText text(virDomainGetMetadata(domain, VIR_DOMAIN_METADATA_ELEMENT, metadata_uri, 0));
    if (text) return std::string(text.get());
    if (virGetLastErrorCode() == VIR_ERR_NO_DOMAIN_METADATA) return std::string();
    return last_error(what);
}

Status write_metadata(virDomainPtr domain, const std::string& xml, unsigned wanted, const std::string& what) {
    TRY_SET(unsigned flags, definitions(domain, what));
    flags &= wanted;
    if (flags == 0) return {};
    if (virDomainSetMetadata(domain, VIR_DOMAIN_METADATA_ELEMENT, xml.empty() ? nullptr : xml.c_str(), metadata_prefix,
                             metadata_uri, flags) < 0)
        return last_error(what);
    return {};
}

}  // namespace

Domain domain_of(virDomainPtr domain) {
    char uuid[VIR_UUID_STRING_BUFLEN] = "";
    virDomainGetUUIDString(domain, uuid);
    const char* name = virDomainGetName(domain);
    return {name ? name : "", uuid};
}

Libvirt::Awaitable<std::vector<DomainEntry>> Libvirt::domains(Milliseconds deadline) {
    const std::string what = "list domains";
    return LibvirtCore::run<std::vector<DomainEntry>>(
        core_, what, deadline, [what](virConnectPtr connection) { return list_domains(connection, what); });
}

Libvirt::Awaitable<std::string> Libvirt::domain_xml(std::string uuid, unsigned flags, Milliseconds deadline) {
    const std::string what = "read the definition of " + object(uuid);
    return LibvirtCore::run<std::string>(core_, what, deadline,
                                         [what, uuid, flags](virConnectPtr connection) -> Result<std::string> {
                                             TRY_SET(const DomainOwner domain, find(connection, uuid, what));
                                             const LibvirtText text(virDomainGetXMLDesc(domain.get(), flags));
                                             if (!text) return last_error(what);
                                             return std::string(text.get());
                                         });
}

Libvirt::Awaitable<DomainState> Libvirt::domain_state(std::string uuid, Milliseconds deadline) {
    const std::string what = "read the state of " + object(uuid);
    return LibvirtCore::run<DomainState>(core_, what, deadline,
                                         [what, uuid](virConnectPtr connection) -> Result<DomainState> {
                                             TRY_SET(const DomainOwner domain, find(connection, uuid, what));
                                             DomainState state;
                                             if (virDomainGetState(domain.get(), &state.state, &state.reason, 0) < 0)
                                                 return last_error(what);
                                             return state;
                                         });
}

Libvirt::Awaitable<DomainJob> Libvirt::job(std::string uuid, Milliseconds deadline) {
    const std::string what = "read the job of " + object(uuid);
    return LibvirtCore::run<DomainJob>(core_, what, deadline,
                                       [what, uuid](virConnectPtr connection) -> Result<DomainJob> {
                                           TRY_SET(const DomainOwner domain, find(connection, uuid, what));
                                           return job_of(domain.get(), what);
                                       });
}

Libvirt::Awaitable<std::string> Libvirt::get_metadata(std::string uuid, Milliseconds deadline) {
    const std::string what = "read the metadata of " + object(uuid);
    return LibvirtCore::run<std::string>(core_, what, deadline,
                                         [what, uuid](virConnectPtr connection) -> Result<std::string> {
                                             TRY_SET(const DomainOwner domain, find(connection, uuid, what));
                                             return read_metadata(domain.get(), what);
                                         });
}

Libvirt::Awaitable<void> Libvirt::set_metadata(std::string uuid, std::string xml, unsigned flags,
                                               Milliseconds deadline) {
    const std::string what = "write the metadata of " + object(uuid);
    return LibvirtCore::run<void>(core_, what, deadline, [what, uuid, xml, flags](virConnectPtr connection) -> Status {
        TRY_SET(const DomainOwner domain, find(connection, uuid, what));
        return write_metadata(domain.get(), xml, flags, what);
    });
}

Libvirt::Awaitable<std::string> Libvirt::monitor_command(std::string uuid, std::string json, Milliseconds deadline) {
    const std::string what = "send a monitor command to " + object(uuid);
    return LibvirtCore::run<std::string>(
        core_, what, deadline, [what, uuid, json](virConnectPtr connection) -> Result<std::string> {
            TRY_SET(const DomainOwner domain, find(connection, uuid, what));
            char* reply = nullptr;
            const int done = virDomainQemuMonitorCommand(domain.get(), json.c_str(), &reply, 0);
            const LibvirtText owned(reply);
            if (done < 0) return last_error(what);
            return std::string(reply ? reply : "");
        });
}

}  // namespace banana::controller
