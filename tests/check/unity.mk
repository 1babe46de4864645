# The same libraries, and so programs, compiled eight files at a time (a "unity build"): most of what compiling costs is
# headers and templates, and that is paid once for all of them: a third of the time that make takes by itself. For
# ./quickstart and ./check, in a configured build directory:
#
#     make -f SRCDIR/tests/check/unity.mk [REVERSED=1] TARGET...
#
# A file that forgot an include may find it in one that comes before. So ./check's second build has the files the other
# way round; what both hide is found by make itself (README.md, "Install on real hosts").

ranges := 1:8 9:16 17:24 25:32 33:40 41:48 49:56 57:64 65:72 73:80
libraries := $(shell sed -n 's/^\(lib[a-z]*_a\)_OBJECTS = .*/\1/p' Makefile)
AM_MAKEFLAGS := -f $(lastword $(MAKEFILE_LIST))

bounds = $(subst :, ,$(1))
reversed = $(if $(1),$(call reversed,$(wordlist 2,$(words $(1)),$(1))) $(firstword $(1)))
listed = $(filter %.cpp,$($(1)_SOURCES))
sources = $(strip $(if $(REVERSED),$(call reversed,$(listed)),$(listed)))
batch = $(wordlist $(word 1,$(call bounds,$(2))),$(word 2,$(call bounds,$(2))),$(call sources,$(1)))
name = unity/$(1)-$(word 1,$(call bounds,$(2)))
objects = $(foreach range,$(ranges),$(if $(call batch,$(1),$(range)),$(call name,$(1),$(range)).o))

# Before automake's own of the same names, which then have no effect.
$(foreach library,$(libraries),$(eval override $(library)_OBJECTS = $$(call objects,$(library))))

include Makefile

define rule
$(call name,$(1),$(2)).cpp: Makefile
	@mkdir -p unity
	@printf '#include "%s"\n' $(call batch,$(1),$(2)) >$$@
endef
$(foreach library,$(libraries),$(foreach range,$(ranges),$(if $(call batch,$(library),$(range)),\
	$(eval $(call rule,$(library),$(range))))))

all_objects := $(foreach library,$(libraries),$(call objects,$(library)))
$(all_objects): %.o: %.cpp | $(BUILT_SOURCES)
	$(AM_V_CXX)$(CXXCOMPILE) $(if $(findstring clang,$(CXX)),,-Wno-subobject-linkage) -MMD -MP -c -o $@ $<
-include $(all_objects:.o=.d)
