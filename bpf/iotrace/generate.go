package iotrace

// The compiler is named with its version, since another one writes other bytes.
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -output-stem block -cflags "-O2 -Wall -Werror -mcpu=v3" block kernel/block.bpf.c
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -output-stem tcp -cflags "-O2 -Wall -Werror -mcpu=v3" tcp kernel/tcp.bpf.c
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -output-stem ring -cflags "-O2 -Wall -Werror -mcpu=v3" ring kernel/ring.bpf.c
