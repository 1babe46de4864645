// Table<T>: all records of one kind in memory, written through to the Store by compare-and-set.
//
// Concepts: T has `Json json() const` and `static Result<T> from_json(const Json&)`. A change is made on a copy and
// handed to save(); what cannot be stored is not seen either, so memory never runs ahead of the disk.
// Threading: one thread. References stay valid until that record is erased.
#pragma once

#include <map>

#include "registry/store.h"

namespace banana::registry {

template <class T>
class Table {
public:
    Table(Store& store, std::string kind) : store_(store), kind_(std::move(kind)) {}

    // Reads all records. One that cannot be understood is left on the disk and reported by `bad`, not fatal.
    template <class Bad>
    Status load(Bad bad) {
        TRY_SET(const auto records, store_.list(kind_));
        for (const auto& record : records) {
            auto value = T::from_json(record.document);
            if (value)
                rows_[record.key] = {std::move(*value), record.version};
            else
                bad(value.error().context(kind_ + " " + record.key));
        }
        return {};
    }

    const T* find(const std::string& key) const {
        const auto it = rows_.find(key);
        return it == rows_.end() ? nullptr : &it->second.value;
    }

    Status save(const std::string& key, T value) {
        const auto it = rows_.find(key);
        const int64_t expected = it == rows_.end() ? 0 : it->second.version;
        TRY_SET(const int64_t version, store_.compare_and_set(kind_, key, expected, value.json()));
        rows_[key] = {std::move(value), version};
        return {};
    }

    Status erase(const std::string& key) {
        TRY(store_.erase(kind_, key));
        rows_.erase(key);
        return {};
    }

    size_t size() const { return rows_.size(); }
    std::vector<std::string> keys() const {
        std::vector<std::string> out;
        out.reserve(rows_.size());
        for (const auto& [key, row] : rows_) out.push_back(key);
        return out;
    }
    // Calls f(const T&) for each record; f must not change the table.
    template <class F>
    void each(F f) const {
        for (const auto& [key, row] : rows_) f(row.value);
    }

private:
    struct Row {
        T value;
        int64_t version = 0;
    };
    Store& store_;
    std::string kind_;
    std::map<std::string, Row> rows_;
};

}  // namespace banana::registry
