// One LSTM step at a time with sizes fixed at compile time, on Eigen: how RTNeural's Eigen back end computes it (four gates,
// each W x + U h + b as its own expression, sigmoid by way of tanh), for the figure of docs/performance.md beside a step
// inside `push`. RTNeural itself is fetched and built by its users; this stands in for its loop.
//
//     apt-get install libeigen3-dev
//     g++ -O3 -march=native -DNDEBUG -I/usr/include/eigen3 tools/bench/fixed_size_lstm.cpp -o /tmp/fixed_size_lstm
//     /tmp/fixed_size_lstm                        prints nanoseconds a step, least of 200 runs of 100 steps
//     python tools/bench/push_step.py             the same for fastrnn
#include <Eigen/Dense>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>

template <int H> struct Lstm {
    using Matrix = Eigen::Matrix<float, H, H>;
    using Vector = Eigen::Matrix<float, H, 1>;
    Matrix Wf, Wi, Wc, Wo, Uf, Ui, Uc, Uo;
    Vector bf, bi, bc, bo, h, c;

    template <typename M> static auto sigmoid(const M &x) { return ((x.array() / 2.0f).tanh() + 1.0f) / 2.0f; }

    void step(const Vector &x) {
        Vector f, i, g, o;
        f.noalias() = Wf * x + Uf * h + bf;
        i.noalias() = Wi * x + Ui * h + bi;
        g.noalias() = Wc * x + Uc * h + bc;
        o.noalias() = Wo * x + Uo * h + bo;
        c = (sigmoid(f) * c.array() + sigmoid(i) * g.array().tanh()).matrix();
        h = (sigmoid(o) * c.array().tanh()).matrix();
    }
};

template <int H> void measure() {
    using Clock = std::chrono::steady_clock;
    auto lstm = std::make_unique<Lstm<H>>();
    typename Lstm<H>::Vector x[100];
    for (auto *m : {&lstm->Wf, &lstm->Wi, &lstm->Wc, &lstm->Wo, &lstm->Uf, &lstm->Ui, &lstm->Uc, &lstm->Uo}) {
        *m = Lstm<H>::Matrix::Random() / std::sqrt(float(H));
    }
    for (auto *v : {&lstm->bf, &lstm->bi, &lstm->bc, &lstm->bo, &lstm->h, &lstm->c}) v->setZero();
    for (auto &v : x) v.setRandom();
    double best = 1e30;
    for (int run = 0; run < 200; run++) {
        auto start = Clock::now();
        for (const auto &v : x) lstm->step(v);
        best = std::min(best, std::chrono::duration<double, std::nano>(Clock::now() - start).count() / 100);
    }
    std::printf("lstm-%-4d %9.1f ns a step  (h[0] = %g)\n", H, best, lstm->h[0]);
}

int main() {
    measure<16>();
    measure<32>();
    measure<64>();
    measure<128>();
}
