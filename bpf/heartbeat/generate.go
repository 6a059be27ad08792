package heartbeat

// The compiler is named with its version, since another one writes other bytes.
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -output-stem program -cflags "-O2 -Wall -Werror -mcpu=v3" program kernel/heartbeat.bpf.c
