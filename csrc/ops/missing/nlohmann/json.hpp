// Torch's headers of functorch include this one, which its wheels lack. What they call is declared here; nothing that
// segloss uses of them reads or writes JSON. The folder is searched last: where there is the real header, it is taken.
#pragma once

#include <string>

namespace nlohmann {

class json {
public:
    json();
    template <class T> explicit json(const T& value);
    static json parse(const std::string& text);
    std::string dump() const;
    template <class T> T get() const;
};

} // namespace nlohmann
