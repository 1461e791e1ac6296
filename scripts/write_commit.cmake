# cmake -DSOURCE=DIR -DOUT=FILE -P write_commit.cmake: a header that names the commit of SOURCE, written where it differs.
cmake_minimum_required(VERSION 3.22)
set(commit unknown)
if(EXISTS ${SOURCE}/.git)
  execute_process(COMMAND git -C ${SOURCE} describe --always --dirty --abbrev=12 --exclude=* OUTPUT_VARIABLE described
    OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
  if(NOT failed)
    set(commit ${described})
  endif()
endif()
file(CONFIGURE OUTPUT ${OUT} CONTENT "#define SINKLORA_COMMIT \"@commit@\"\n" @ONLY)
