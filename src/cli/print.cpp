#include "cli/print.h"

namespace banana::cli {

Printer list_of(const char* member, std::vector<Column> columns) {
    return [member, columns = std::move(columns)](const Page& page, const Json&, const Json& result) {
        const Json array = result.get(member);
        if (!page.brief) return table_of(array, columns).print(page.out);
        for (size_t i = 0; i < array.size(); ++i) page.out << cell(array.at(i).get("name")) << '\n';
    };
}

Printer done(const char* text, const char* brief) {
    return [text, brief](const Page& page, const Json& params, const Json&) {
        if (page.brief) {
            if (*brief) page.out << cell(params.get(brief)) << '\n';
            return;
        }
        const std::string_view format = text;
        for (size_t at = 0; at < format.size();) {
            const size_t open = std::min(format.find('{', at), format.size());
            page.out << format.substr(at, open - at);
            if (open == format.size()) break;
            const size_t close = format.find('}', open);
            page.out << cell(at_path(params, format.substr(open + 1, close - open - 1)));
            at = close + 1;
        }
        page.out << '\n';
    };
}

Printer fields_of(std::vector<Column> fields) {
    return [fields = std::move(fields)](const Page& page, const Json&, const Json& result) {
        if (page.brief)
            page.out << cell(result.get("name")) << '\n';
        else
            print_fields(page.out, result, fields);
    };
}

void print_problems(std::ostream& out, const Json& texts, const char* label) {
    for (size_t i = 0; i < texts.size(); ++i) out << label << ": " << cell(texts.at(i)) << '\n';
}

}  // namespace banana::cli
