/* Small configs and scans for the programs of the tutorial. Include mamba.c first.
   SPDX-License-Identifier: MIT */

/* A model of these extents, otherwise as the released ones are. */
static Config config_of(int vocab_size, int d_model, int n_layer, int d_state, int d_conv) {
    Config c;
    memset(&c, 0, sizeof c);
    c.vocab_size = vocab_size, c.d_model = d_model, c.n_layer = n_layer, c.d_state = d_state, c.d_conv = d_conv;
    c.expand = 2, c.d_inner = 2 * d_model, c.dt_rank = (d_model + 15) / 16;
    c.conv_bias = 1, c.tied = 1, c.norm_eps = 1e-5;
    if (config_check(&c, "tutorial") != 0) {
        fprintf(stderr, "%s\n", error_message);
        exit(1);
    }
    return c;
}

/* The shape of the released 130m checkpoint. */
static Config config_130m(void) { return config_of(50280, 768, 24, 16, 4); }

/* scan_forward for one sequence, all of whose tensors are dense. h: (d_state, d_inner), read and updated. */
static void small_scan(real *y, real *kept, const real *u, const real *delta, const real *B, const real *C,
                       const real *A_log, const real *D, real *h, int len, int d_inner, int d_state) {
    BC bc = {(real *)B, (real *)C, (size_t)d_state, (size_t)d_state};
    ScanInput in = {(real *)u, (real *)delta, bc, (real *)A_log, (real *)D};
    scan_forward(y, kept, in, h, h, 0, 1, len, d_inner, d_state);
}
